// The library for types per expert at work without llama.cpp, for compilers that look for mistakes.
// Usage: harness FOLDER THREADS. Says what is wrong and ends with 1, or with 0.

#include "insides.h"

#include "ggml-alloc.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <random>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

struct Table;
extern "C" {
const char * const * experts_names();
const char * experts_begin(void * const *);
Table * experts_new(const int32_t *, int32_t, bool, bool);
void experts_free(Table *);
const char * experts_error(const Table *);
ggml_backend_buffer_type_t experts_memory(Table *);
uint64_t experts_add(Table *, const char *, int64_t, int64_t, int32_t, const int32_t *,
                     const int32_t *, const uint64_t *);
FILE * view_open(const char *, uint64_t, const uint64_t *, int64_t, uint64_t);
void view_close(FILE *);
}

constexpr int64_t ROWS = 48, COLUMNS = 64, EXPERTS = 6, CHOICES = 3;
const int32_t TYPES[EXPERTS] = {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_F16,
                                GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0};
const char * const NAME = "blk.0.ffn_up_exps.weight";

void expect(bool right, const std::string & what) {
    if (!right) {
        std::fprintf(stderr, "wrong: %s\n", what.c_str());
        std::exit(1);
    }
}

std::vector<float> random_floats(size_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<float> made(count);
    for (float & value : made) {
        value = float(random() % 2001) / 1000 - 1;
    }
    return made;
}

// A file of experts, and their values as they are after a round trip.
struct Made {
    std::string path;
    std::vector<uint64_t> offsets;
    std::vector<float> values; // [experts, rows, columns]
};

Made make_file(const std::string & path) {
    Made made = {path, {}, random_floats(size_t(EXPERTS * ROWS * COLUMNS), 1)};
    FILE * file = std::fopen(path.c_str(), "wb");
    for (int64_t expert = 0; expert < EXPERTS; expert++) {
        const ggml_type type = ggml_type(TYPES[expert]);
        std::vector<uint8_t> bytes(ggml_row_size(type, COLUMNS) * size_t(ROWS));
        float * values = &made.values[size_t(expert * ROWS * COLUMNS)];
        ggml_quantize_chunk(type, values, bytes.data(), 0, ROWS, COLUMNS, nullptr);
        ggml_get_type_traits(type)->to_float(bytes.data(), values, ROWS * COLUMNS);
        std::fseek(file, std::ftell(file) + 40, SEEK_SET);
        made.offsets.push_back(uint64_t(std::ftell(file)));
        std::fwrite(bytes.data(), 1, bytes.size(), file);
    }
    std::fclose(file);
    return made;
}

// What llama.cpp does with a stack: a tensor of another type in the memory that we give.
struct Loaded {
    Table * table;
    ggml_context * context;
    ggml_tensor * stack;
    ggml_backend_buffer_t buffer;

    Loaded(const Made & made, int file, bool repack) {
        table = experts_new(&file, 1, true, repack);
        const std::vector<int32_t> files(size_t(EXPERTS), 0);
        expect(experts_add(table, NAME, ROWS, COLUMNS, EXPERTS, TYPES, files.data(),
                           made.offsets.data()),
               experts_error(table));
        context = ggml_init({16 * ggml_tensor_overhead(), nullptr, true});
        stack = ggml_new_tensor_3d(context, GGML_TYPE_Q2_0, COLUMNS, ROWS, EXPERTS);
        ggml_set_name(stack, NAME);
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, experts_memory(table));
        ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        const std::vector<uint8_t> zeros(ggml_nbytes(stack));
        ggml_backend_tensor_set(stack, zeros.data(), 0, zeros.size());
    }
    ~Loaded() {
        ggml_backend_buffer_free(buffer);
        ggml_free(context);
        experts_free(table);
    }
};

ggml_backend_dev_t the_device() {
    ggml_backend_dev_t found = ggml_backend_dev_by_name("EXPERTS");
    expect(found, "the device is registered");
    return found;
}

// Multiply so many tokens; the largest difference to plain sums, or -1 if it was refused.
float multiply(const Loaded & loaded, const Made & made, int64_t tokens, int64_t per_token,
               int threads, int32_t wrong_id = 0) {
    ggml_backend_t backend = ggml_backend_dev_init(the_device(), nullptr);
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(the_device());
    auto set_threads = ggml_backend_set_n_threads_t(
        ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
    set_threads(backend, threads);
    ggml_context * context =
        ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true});
    ggml_tensor * input = ggml_new_tensor_3d(context, GGML_TYPE_F32, COLUMNS, per_token, tokens);
    ggml_tensor * ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, CHOICES, tokens);
    ggml_tensor * result = ggml_mul_mat_id(context, loaded.stack, input, ids);
    ggml_cgraph * graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, result);
    expect(ggml_backend_supports_op(backend, result), "the operation is taken");
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, backend);

    const std::vector<float> rows = random_floats(size_t(ggml_nelements(input)), unsigned(tokens));
    std::vector<int32_t> chosen(size_t(ggml_nelements(ids)));
    for (size_t index = 0; index < chosen.size(); index++) {
        chosen[index] = int32_t((index * 7 / 3 + index % CHOICES) % EXPERTS);
    }
    chosen.back() = wrong_id ? wrong_id : chosen.back();
    ggml_backend_tensor_set(input, rows.data(), 0, ggml_nbytes(input));
    ggml_backend_tensor_set(ids, chosen.data(), 0, ggml_nbytes(ids));
    const bool done = ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS;
    std::vector<float> found(size_t(ggml_nelements(result)));
    ggml_backend_tensor_get(result, found.data(), 0, ggml_nbytes(result));
    float largest = done ? 0.0f : -1.0f;
    const size_t step = 1 + chosen.size() / 500; // of many rows some are enough
    for (size_t index = 0; done && index < chosen.size(); index += step) {
        const size_t source = index / CHOICES * size_t(per_token) + index % size_t(per_token);
        for (int64_t row = 0; row < ROWS; row++) {
            float sum = 0;
            for (int64_t column = 0; column < COLUMNS; column++) {
                sum += rows[source * COLUMNS + size_t(column)] *
                       made.values[size_t((chosen[index] * ROWS + row) * COLUMNS + column)];
            }
            largest = std::max(largest, std::abs(sum - found[index * ROWS + size_t(row)]));
        }
    }
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
    ggml_backend_free(backend);
    return largest;
}

void check_products(const Made & made, int file, int threads) {
    for (bool repack : {false, true}) {
        Loaded loaded(made, file, repack);
        expect(!*experts_error(loaded.table), experts_error(loaded.table));
        for (int64_t tokens : {1, 2, 9, 40, 13000}) { // the last takes two rounds
            for (int64_t per_token : {int64_t(1), CHOICES}) {
                const float error = multiply(loaded, made, tokens, per_token, threads);
                expect(0 < error && error < 0.2f,
                       std::to_string(tokens) + " tokens: off by " + std::to_string(error));
            }
        }
        for (int32_t id : {-1, int32_t(EXPERTS), INT32_MAX, INT32_MIN}) {
            expect(multiply(loaded, made, 2, 1, threads, id) < 0, "an id is no expert's");
        }
        auto many = [&] {
            expect(multiply(loaded, made, 40, 1, threads) < 0.2f, "beside another context");
        };
        std::thread first(many), second(many);
        first.join(), second.join();
    }
}

void check_refusals(const Made & made, int file) {
    Made beyond = made;
    beyond.offsets.back() += 1000;
    Loaded loaded(beyond, file, false);
    expect(std::strstr(experts_error(loaded.table), "expert 5 cannot be read"), "a short file");
    const int32_t zero = 0, types[] = {GGML_TYPE_Q8_K, 4, 99, -1};
    const uint64_t offset = 0;
    for (int32_t type : types) {
        expect(!experts_add(loaded.table, "a", 8, 256, 1, &type, &zero, &offset), "a type");
    }
    const int32_t q4_0 = GGML_TYPE_Q4_0, file_7 = 7;
    expect(!experts_add(loaded.table, "a", 8, 33, 1, &q4_0, &zero, &offset), "half a block");
    expect(!experts_add(loaded.table, "a", 8, 32, 1, &q4_0, &file_7, &offset), "no such file");
    expect(!experts_add(loaded.table, "a", 0, 32, 1, &q4_0, &zero, &offset), "no rows");
    expect(!experts_add(loaded.table, NAME, 8, 32, 1, &q4_0, &zero, &offset), "there already");
}

void check_view(const Made & made, int file) {
    const std::string header = "header";
    const uint64_t pieces[] = {10, 20, uint64_t(file), made.offsets[0],
                               50, 30, uint64_t(file), made.offsets[1]};
    std::vector<char> wanted(100), found(200);
    std::memcpy(wanted.data(), header.data(), header.size());
    expect(pread(file, &wanted[10], 20, off_t(made.offsets[0])) == 20, "read");
    expect(pread(file, &wanted[50], 30, off_t(made.offsets[1])) == 30, "read");
    FILE * view = view_open(header.data(), header.size(), pieces, 2, wanted.size());
    expect(std::fread(found.data(), 1, found.size(), view) == wanted.size(), "its size");
    expect(!std::memcmp(found.data(), wanted.data(), wanted.size()), "its bytes");
    for (long at = 0; at < 100; at++) {
        expect(!std::fseek(view, at, SEEK_SET) && std::fgetc(view) == (wanted[size_t(at)] & 255),
               "a byte");
    }
    expect(!std::fseek(view, 0, SEEK_END) && std::ftell(view) == 100, "its end");
    view_close(view);
}

int main(int, char ** arguments) {
#define ADDRESS(name) reinterpret_cast<void *>(&name),
    void * functions[] = {GGML_FUNCTIONS(ADDRESS)};
    expect(!experts_begin(functions), "ggml is laid out as declared");
    const Made made = make_file(std::string(arguments[1]) + "/experts");
    const int file = open(made.path.c_str(), O_RDONLY);
    check_products(made, file, std::atoi(arguments[2]));
    check_refusals(made, file);
    check_view(made, file);
    close(file);
    return 0;
}
