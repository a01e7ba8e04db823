// A file that is nowhere, as a `FILE *` to read: a header in memory, pieces of real files, and
// zeros between them. So llama.cpp reads a file in another layout than the one on the disk.

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include <unistd.h>

namespace {

struct Piece {
    uint64_t start, size; // in the view
    int file;
    uint64_t offset;
};

struct View {
    std::vector<char> header;
    std::vector<Piece> pieces; // by their start
    uint64_t size;
    uint64_t position;
};

// Read what is at the position, no further than where something else begins; -1: see errno.
ssize_t read_some(const View & view, char * out, size_t wanted) {
    if (view.position < view.header.size()) {
        const size_t count = std::min(wanted, size_t(view.header.size() - view.position));
        std::memcpy(out, &view.header[view.position], count);
        return ssize_t(count);
    }
    auto is_later = [](uint64_t at, const Piece & piece) { return at < piece.start; };
    auto next = std::upper_bound(view.pieces.begin(), view.pieces.end(), view.position, is_later);
    if (next != view.pieces.begin() && view.position - next[-1].start < next[-1].size) {
        const Piece & piece = next[-1];
        const uint64_t within = view.position - piece.start;
        const size_t count = size_t(std::min(uint64_t(wanted), piece.size - within));
        ssize_t got = 0;
        do {
            got = pread(piece.file, out, count, off_t(piece.offset + within));
        } while (got < 0 && errno == EINTR);
        return got;
    }
    const uint64_t end = next == view.pieces.end() ? view.size : next->start;
    const size_t count = size_t(std::min(uint64_t(wanted), end - view.position));
    std::memset(out, 0, count);
    return ssize_t(count);
}

ssize_t read_view(void * cookie, char * out, size_t wanted) {
    View & view = *static_cast<View *>(cookie);
    size_t done = 0;
    wanted = size_t(std::min(uint64_t(wanted), view.size - view.position));
    while (done < wanted) {
        const ssize_t count = read_some(view, out + done, wanted - done);
        if (count < 0) {
            return -1;
        }
        if (count == 0) { // a file is shorter than its own table says
            break;
        }
        done += size_t(count), view.position += uint64_t(count);
    }
    return ssize_t(done);
}

int64_t seek_view(void * cookie, int64_t offset, int whence) {
    View & view = *static_cast<View *>(cookie);
    const uint64_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? view.position : view.size;
    const int64_t target = int64_t(from) + offset;
    if (target < 0 || uint64_t(target) > view.size) {
        errno = EINVAL;
        return -1;
    }
    view.position = uint64_t(target);
    return target;
}

int close_view(void * cookie) {
    delete static_cast<View *>(cookie);
    return 0;
}

FILE * as_file(View * view) {
#ifdef __linux__
    cookie_io_functions_t how = {};
    how.read = read_view;
    how.seek = [](void * cookie, auto * offset, int whence) {
        *offset = seek_view(cookie, *offset, whence);
        return *offset < 0 ? -1 : 0;
    };
    how.close = close_view;
    return fopencookie(view, "rb", how);
#else
    auto read = [](void * cookie, char * out, int wanted) {
        return int(read_view(cookie, out, size_t(wanted)));
    };
    auto seek = [](void * cookie, fpos_t offset, int whence) {
        return fpos_t(seek_view(cookie, int64_t(offset), whence));
    };
    return funopen(view, read, nullptr, seek, close_view);
#endif
}

} // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// A view of so many bytes: the header, and pieces [count, 4] of (start in the view, bytes, a file's
// descriptor, offset there), by their start. Null: no memory. The descriptors stay the caller's.
EXPORTED FILE * view_open(const char * header, uint64_t header_size, const uint64_t * pieces,
                          int64_t count, uint64_t size) {
    try {
        std::unique_ptr<View> view(new View{{header, header + header_size}, {}, size, 0});
        for (; count > 0; count--, pieces += 4) {
            view->pieces.push_back({pieces[0], pieces[1], int(pieces[2]), pieces[3]});
        }
        FILE * file = as_file(view.get());
        if (file) {
            view.release();
        }
        return file;
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

EXPORTED void view_close(FILE * file) { std::fclose(file); }
