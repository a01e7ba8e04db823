// Experts of different types in one stack, for a llama.cpp that is left as it is.
//
// llama.cpp holds the experts of a projection as one tensor of one type, a stack. Of a file in
// which every expert has a type of its own it is shown stacks of some small type (`view.cpp`), which
// are sent to a kind of memory of ours, one for each loaded file (`Table`). This memory takes the
// experts' real bytes from the file instead, those of a type side by side (`Group`). A device of
// ours, which every context finds among the accelerators, claims all operations that read such
// memory, which is MUL_MAT_ID alone, and computes it by ggml's own kernels: one MUL_MAT_ID for each
// type, over the rows that go to its experts (`Product`). So results are ggml's, bit by bit.
//
// Nothing here knows the bytes of a type, a thread or a processor. Errors never leave as
// exceptions: a table keeps its first one as a text; one while computing is logged, and the
// computation fails.

#include "insides.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <unistd.h>

namespace {

Functions lib; // of ggml
const char * const names[] = {GGML_FUNCTIONS(GGML_NAME) nullptr};

ggml_backend_device device;
ggml_backend_reg registry;

bool log_error(const char * what, const char * name) {
    lib.ggml_log_internal(GGML_LOG_LEVEL_ERROR, "experts: %s: %s\n", name, what);
    return false;
}

// --- the experts of a file ---

// Experts of one type: a stack that ggml computes with.
struct Group {
    ggml_type type;
    std::vector<int32_t> experts;
    ggml_tensor weights;
    ggml_backend_buffer_type_t kind; // of memory
    ggml_backend_buffer_t buffer;    // which they lie in; null: none was given yet
};

struct Source {
    int file;
    uint64_t offset;
};

// The experts of one projection.
struct Stack {
    std::string name;
    int64_t rows, columns;
    std::vector<Source> sources; // of every expert
    std::vector<int32_t> places; // of every expert in its group
    std::vector<Group> groups;
    size_t size; // bytes of the groups' memory
};

// What belongs to one loaded file. It has to outlive the model.
struct Table {
    std::map<std::string, Stack, std::less<>> stacks;
    std::vector<int> files;
    bool validate;     // refuse NaN and infinite weights
    bool repack;       // let ggml rearrange weights where it has faster kernels then
    std::string error; // the first thing that went wrong
    ggml_backend_buffer_type memory;

    bool fail(const std::string & what) {
        error = error.empty() ? what : error;
        return false;
    }
};

// Whether ggml's CPU multiplies rows of this type and length.
bool multiplies(int32_t type, int64_t columns) {
    if (type < 0 || type >= GGML_TYPE_COUNT || lib.ggml_blck_size(ggml_type(type)) <= 0 ||
        columns % lib.ggml_blck_size(ggml_type(type))) {
        return false;
    }
    const ggml_type_traits_cpu * traits = lib.ggml_get_type_traits_cpu(ggml_type(type));
    const ggml_type input = traits->vec_dot_type;
    return traits->vec_dot &&
           (input == GGML_TYPE_F32 || lib.ggml_get_type_traits_cpu(input)->from_float);
}

ggml_tensor described(ggml_type type, int64_t columns, int64_t rows, int64_t count) {
    ggml_tensor made = {};
    made.type = type;
    made.ne[0] = columns, made.ne[1] = rows, made.ne[2] = count, made.ne[3] = 1;
    made.nb[0] = lib.ggml_row_size(type, lib.ggml_blck_size(type));
    made.nb[1] = lib.ggml_row_size(type, columns);
    made.nb[2] = made.nb[1] * size_t(rows), made.nb[3] = made.nb[2] * size_t(count);
    return made;
}

// The memory that ggml's CPU computes fastest from: the first of its special kinds that takes
// such weights, as llama.cpp chooses, or the plain one.
ggml_backend_buffer_type_t best_kind(ggml_tensor weights, bool repack) {
    ggml_backend_dev_t cpu = lib.ggml_backend_reg_dev_get(lib.ggml_backend_cpu_reg(), 0);
    auto kinds_of = ggml_backend_dev_get_extra_bufts_t(lib.ggml_backend_reg_get_proc_address(
        lib.ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
    ggml_tensor input = described(GGML_TYPE_F32, weights.ne[0], 1, 1);
    ggml_tensor ids = described(GGML_TYPE_I32, 1, 1, 1);
    ggml_tensor product = described(GGML_TYPE_F32, weights.ne[1], 1, 1);
    product.op = GGML_OP_MUL_MAT_ID;
    product.src[0] = &weights, product.src[1] = &input, product.src[2] = &ids;
    auto kind = repack && kinds_of ? kinds_of(cpu) : nullptr;
    for (; kind && *kind; kind++) {
        ggml_backend_buffer empty = {};
        empty.buft = *kind, weights.buffer = &empty;
        if (lib.ggml_backend_dev_supports_op(cpu, &product)) {
            return *kind;
        }
    }
    return lib.ggml_backend_cpu_buffer_type();
}

// Divide the experts into groups by type.
void sort_experts(Stack & stack, const int32_t * types, bool repack) {
    for (int32_t expert = 0; size_t(expert) < stack.sources.size(); expert++) {
        auto is_same = [&](const Group & group) { return group.type == types[expert]; };
        auto group = std::find_if(stack.groups.begin(), stack.groups.end(), is_same);
        if (group == stack.groups.end()) {
            group = stack.groups.insert(group, {ggml_type(types[expert]), {}, {}, {}, nullptr});
        }
        stack.places.push_back(int32_t(group->experts.size()));
        group->experts.push_back(expert);
    }
    for (Group & group : stack.groups) {
        const int64_t count = int64_t(group.experts.size());
        group.weights = described(group.type, stack.columns, stack.rows, count);
        group.kind = best_kind(group.weights, repack);
        stack.size += lib.ggml_backend_buft_get_alloc_size(group.kind, &group.weights);
    }
}

bool read_fully(const Source & source, uint8_t * out, size_t size) {
    for (size_t done = 0; done < size;) {
        const size_t wanted = std::min(size - done, size_t(1) << 30);
        const ssize_t got = pread(source.file, out + done, wanted, off_t(source.offset + done));
        if (got == 0) {
            errno = EIO; // the file is shorter than its own table says
        }
        if (got == 0 || (got < 0 && errno != EINTR)) {
            return false;
        }
        done += size_t(std::max(got, ssize_t(0)));
    }
    return true;
}

bool read_experts(Table & table, const Stack & stack, const Group & group, uint8_t * out) {
    const size_t size = group.weights.nb[2];
    for (int32_t expert : group.experts) {
        const std::string who = stack.name + ", expert " + std::to_string(expert);
        if (!read_fully(stack.sources[size_t(expert)], out, size)) {
            return table.fail(who + " cannot be read: " + std::strerror(errno));
        }
        if (table.validate && !lib.ggml_validate_row_data(group.type, out, size)) {
            return table.fail(who + " holds NaN or infinite weights");
        }
        out += size;
    }
    return true;
}

// --- their memory ---

const char * memory_name(ggml_backend_buffer_type_t) { return "CPU_EXPERTS"; }

bool is_ours(ggml_backend_buffer_type_t type) { return type && type->get_name == memory_name; }

bool is_ours(const ggml_tensor * tensor) {
    const ggml_tensor * owner = tensor->view_src ? tensor->view_src : tensor;
    return owner->buffer && is_ours(owner->buffer->buft);
}

Table & table_of(ggml_backend_buffer_type_t type) { return *static_cast<Table *>(type->context); }

// The stack that a tensor of llama.cpp's stands for, or null.
Stack * stack_of(ggml_backend_buffer_type_t type, const ggml_tensor * tensor) {
    auto found = table_of(type).stacks.find(static_cast<const char *>(tensor->name));
    if (found == table_of(type).stacks.end()) {
        return nullptr;
    }
    Stack & stack = found->second;
    const bool is_same = tensor->ne[0] == stack.columns && tensor->ne[1] == stack.rows &&
                         tensor->ne[2] == int64_t(stack.sources.size()) && tensor->ne[3] == 1;
    return is_same ? &stack : nullptr;
}

size_t memory_alignment(ggml_backend_buffer_type_t) {
    return lib.ggml_backend_buft_get_alignment(lib.ggml_backend_cpu_buffer_type());
}

size_t memory_size(ggml_backend_buffer_type_t type, const ggml_tensor * tensor) {
    const Stack * stack = stack_of(type, tensor);
    return stack ? stack->size : lib.ggml_nbytes(tensor);
}

bool give_memory(Group & group) {
    if (group.buffer) {
        return true;
    }
    const size_t size = lib.ggml_backend_buft_get_alloc_size(group.kind, &group.weights);
    group.buffer = lib.ggml_backend_buft_alloc_buffer(group.kind, size);
    return group.buffer &&
           lib.ggml_backend_tensor_alloc(group.buffer, &group.weights,
                                         lib.ggml_backend_buffer_get_base(group.buffer)) ==
               GGML_STATUS_SUCCESS;
}

ggml_status begin_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) {
    Stack * stack = stack_of(buffer->buft, tensor);
    if (!stack) {
        log_error("no stack of this file, or of another shape", tensor->name);
        return GGML_STATUS_FAILED;
    }
    tensor->extra = stack;
    const bool done = std::all_of(stack->groups.begin(), stack->groups.end(), give_memory);
    return done ? GGML_STATUS_SUCCESS : GGML_STATUS_ALLOC_FAILED;
}

bool fill(Table & table, const Stack & stack, Group & group) {
    if (group.kind == lib.ggml_backend_cpu_buffer_type()) {
        return read_experts(table, stack, group, static_cast<uint8_t *>(group.weights.data));
    }
    const size_t size = lib.ggml_nbytes(&group.weights);
    std::unique_ptr<uint8_t[]> bytes(new (std::nothrow) uint8_t[size]);
    if (!bytes) {
        return table.fail("no memory to read " + stack.name);
    }
    if (!read_experts(table, stack, group, bytes.get())) {
        return false;
    }
    lib.ggml_backend_tensor_set(&group.weights, bytes.get(), 0, size);
    return true;
}

// llama.cpp writes the zeros of the view: what they stand for is written in their place.
void fill_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void *, size_t offset,
                 size_t) {
    Table & table = table_of(buffer->buft);
    if (tensor->extra && !offset && table.error.empty()) {
        Stack & stack = *static_cast<Stack *>(tensor->extra);
        auto filled = [&](Group & group) { return fill(table, stack, group); };
        (void)std::all_of(stack.groups.begin(), stack.groups.end(), filled);
    }
}

void free_memory(ggml_backend_buffer_t buffer) {
    for (auto & [name, stack] : table_of(buffer->buft).stacks) {
        for (Group & group : stack.groups) {
            lib.ggml_backend_buffer_free(group.buffer); // which may be null
            group.buffer = nullptr;
        }
    }
}

ggml_backend_buffer_t begin_memory(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_i made = {};
    made.free_buffer = free_memory;
    // The groups have the memory. What llama.cpp reckons with begins where nobody may read.
    made.get_base = [](ggml_backend_buffer_t) { return reinterpret_cast<void *>(uintptr_t(4096)); };
    made.init_tensor = begin_tensor;
    made.set_tensor = fill_tensor;
    // Nothing could be read as the tensor's own type.
    made.get_tensor = [](ggml_backend_buffer_t, const ggml_tensor *, void * data, size_t,
                         size_t count) { std::memset(data, 0, count); };
    made.memset_tensor = [](ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {};
    made.clear = [](ggml_backend_buffer_t, uint8_t) {};
    return lib.ggml_backend_buffer_init(type, made, nullptr, size);
}

// --- computing ---

// A row of the result: the product of a token and the expert that is one of its choices.
struct Row {
    int32_t choice, token;
};

// One MUL_MAT_ID of ggml's: rows whose experts are of one type.
struct Product {
    size_t group;
    int64_t begin, end;
    int64_t round; // where those rows begin that are gathered together with these
};

// What a context computes with; its memory is kept from one operation to the next.
struct Worker {
    int threads;
    std::vector<Row> rows;    // of the result, those of an expert side by side
    std::vector<int32_t> ids; // the experts' places in their groups
    std::vector<Product> products;
    std::vector<float> inputs, outputs;
    std::vector<uint8_t> notes, work; // ggml's tensors and graph; room for its kernels
};

// The rows of a round that are copied: inputs gathered, or outputs scattered.
struct Copy {
    Worker & worker;
    const ggml_tensor * tensor;
    int64_t begin, end;
};

constexpr int64_t ROOM = int64_t(16) << 20; // bytes of a round's rows, if an expert has no more

template <typename T> void enlarge(std::vector<T> & room, size_t size) {
    room.resize(std::max(room.size(), size));
}

char * row_of(const ggml_tensor * tensor, const Row & row) {
    return static_cast<char *>(tensor->data) +
           size_t(row.choice % tensor->ne[1]) * tensor->nb[1] + size_t(row.token) * tensor->nb[2];
}

void gather(ggml_tensor *, int thread, int threads, void * data) {
    const Copy & copy = *static_cast<const Copy *>(data);
    const size_t length = size_t(copy.tensor->ne[0]);
    for (int64_t index = copy.begin + thread; index < copy.end; index += threads) {
        float * target = &copy.worker.inputs[size_t(index - copy.begin) * length];
        const char * source = row_of(copy.tensor, copy.worker.rows[size_t(index)]);
        std::memcpy(target, source, length * sizeof(float));
    }
}

void scatter(ggml_tensor *, int thread, int threads, void * data) {
    const Copy & copy = *static_cast<const Copy *>(data);
    const size_t length = size_t(copy.tensor->ne[0]);
    for (int64_t index = copy.begin + thread; index < copy.end; index += threads) {
        const float * source = &copy.worker.outputs[size_t(index - copy.begin) * length];
        char * target = row_of(copy.tensor, copy.worker.rows[size_t(index)]);
        std::memcpy(target, source, length * sizeof(float));
    }
}

// A graph of ggml's, whose nodes are computed in the order in which they are added.
class Graph {
  public:
    Graph(Worker & worker, size_t nodes) : worker(worker) {
        const size_t tensors = 4 * nodes; // a product, its weights, its input and its ids
        enlarge(worker.notes, tensors * lib.ggml_tensor_overhead() +
                                  lib.ggml_graph_overhead_custom(tensors, false) + 64);
        context = lib.ggml_init({worker.notes.size(), worker.notes.data(), true});
        graph = lib.ggml_new_graph_custom(context, tensors, false);
    }
    ~Graph() { lib.ggml_free(context); }
    Graph(const Graph &) = delete;

    // One row for each of so many tokens: ggml has no room for an expert twice in one token.
    ggml_tensor * rows(int64_t columns, int64_t tokens, void * data) {
        return tensor(GGML_TYPE_F32, {columns, 1, tokens}, data);
    }

    // The same row for all of them.
    ggml_tensor * row(int64_t columns, int64_t tokens, void * data) {
        ggml_tensor * made = rows(columns, tokens, data);
        made->nb[2] = 0;
        return made;
    }

    void multiply(const Group & group, ggml_tensor * rows, int32_t * ids, void * out) {
        const ggml_tensor & like = group.weights;
        ggml_tensor * weights = tensor(like.type, {like.ne[0], like.ne[1], like.ne[2]}, like.data);
        weights->buffer = like.buffer, weights->extra = like.extra;
        ggml_tensor * chosen = tensor(GGML_TYPE_I32, {1, rows->ne[2], 1}, ids);
        add(lib.ggml_mul_mat_id(context, weights, rows, chosen), out);
    }

    void copy(ggml_custom_op_t how, Copy & what) {
        add(lib.ggml_custom_4d(context, GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, how,
                               GGML_N_TASKS_MAX, &what),
            &what);
    }

    ggml_status compute() {
        ggml_cplan plan = lib.ggml_graph_plan(graph, worker.threads, nullptr);
        enlarge(worker.work, plan.work_size);
        plan.work_data = worker.work.data();
        return lib.ggml_graph_compute(graph, &plan);
    }

  private:
    Worker & worker;
    ggml_context * context;
    ggml_cgraph * graph;

    struct Shape {
        int64_t sizes[3];
    };

    ggml_tensor * tensor(ggml_type type, const Shape & shape, void * data) {
        ggml_tensor * made = lib.ggml_new_tensor(context, type, 3, shape.sizes);
        made->data = data;
        return made;
    }

    void add(ggml_tensor * node, void * data) {
        node->data = data;
        lib.ggml_build_forward_expand(graph, node);
    }
};

int32_t id_of(const ggml_tensor * ids, int64_t choice, int64_t token) {
    const char * data = static_cast<const char *>(ids->data) + size_t(choice) * ids->nb[0] +
                        size_t(token) * ids->nb[1];
    return *reinterpret_cast<const int32_t *>(data);
}

// How many rows go to each expert. False: an id is no expert's.
bool count_rows(const ggml_tensor * ids, std::vector<int64_t> & counts) {
    for (int64_t token = 0; token < ids->ne[1]; token++) {
        for (int64_t choice = 0; choice < ids->ne[0]; choice++) {
            const int32_t expert = id_of(ids, choice, token);
            if (expert < 0 || size_t(expert) >= counts.size()) {
                return false;
            }
            counts[size_t(expert)]++;
        }
    }
    return true;
}

// Divide rows that lie by group and expert into products, and these into rounds; say where each
// expert's rows begin. They stay together, for ggml has better kernels for many rows.
void divide(std::vector<Product> & products, const Stack & stack, std::vector<int64_t> & counts,
            int64_t most) {
    int64_t end = 0, round = 0;
    products.clear();
    for (size_t group = 0; group < stack.groups.size(); group++) {
        for (int32_t expert : stack.groups[group].experts) {
            const int64_t begin = end, count = counts[size_t(expert)];
            counts[size_t(expert)] = begin;
            if (!count) {
                continue;
            }
            end += count;
            round = end - round > most ? begin : round;
            if (products.empty() || products.back().group != group ||
                products.back().round != round) {
                products.push_back({group, begin, end, round});
            }
            products.back().end = end;
        }
    }
}

// Sort the result's rows by group and expert. False: an id is no expert's.
bool sort_rows(Worker & worker, const Stack & stack, const ggml_tensor * ids) {
    std::vector<int64_t> places(stack.sources.size());
    if (!count_rows(ids, places)) {
        return false;
    }
    const int64_t row_bytes = (stack.columns + stack.rows) * int64_t(sizeof(float));
    divide(worker.products, stack, places, std::max(int64_t(1), ROOM / row_bytes));
    const size_t total = size_t(ids->ne[0] * ids->ne[1]);
    worker.rows.resize(total), worker.ids.resize(total);
    for (int32_t token = 0; token < ids->ne[1]; token++) {
        for (int32_t choice = 0; choice < ids->ne[0]; choice++) {
            const size_t expert = size_t(id_of(ids, choice, token));
            const size_t index = size_t(places[expert]++);
            worker.rows[index] = {choice, token};
            worker.ids[index] = stack.places[expert];
        }
    }
    return true;
}

// The same rows of every round, of another tensor.
std::vector<Copy> rounds(Worker & worker, const ggml_tensor * tensor) {
    std::vector<Copy> found;
    for (const Product & product : worker.products) {
        if (product.begin == product.round) {
            found.push_back({worker, tensor, product.begin, product.end});
        }
        found.back().end = product.end;
    }
    return found;
}

ggml_status multiply(Worker & worker, const Stack & stack, const ggml_tensor * result) {
    const ggml_tensor * input = result->src[1];
    const bool is_one_row = input->ne[1] * input->ne[2] == 1;
    std::vector<Copy> gathered = rounds(worker, input), scattered = rounds(worker, result);
    for (const Copy & copy : scattered) {
        const size_t count = size_t(copy.end - copy.begin);
        enlarge(worker.inputs, is_one_row ? 0 : count * size_t(stack.columns));
        enlarge(worker.outputs, count * size_t(stack.rows));
    }
    Graph graph(worker, worker.products.size() + 2 * gathered.size());
    size_t round = 0;
    for (const Product & product : worker.products) {
        if (product.begin == product.round && !is_one_row) {
            graph.copy(gather, gathered[round]);
        }
        const int64_t count = product.end - product.begin, begin = product.begin - product.round;
        ggml_tensor * rows =
            is_one_row ? graph.row(stack.columns, count, input->data)
                       : graph.rows(stack.columns, count,
                                    &worker.inputs[size_t(begin * stack.columns)]);
        graph.multiply(stack.groups[product.group], rows, &worker.ids[size_t(product.begin)],
                       &worker.outputs[size_t(begin * stack.rows)]);
        if (product.end == scattered[round].end) {
            graph.copy(scatter, scattered[round++]);
        }
    }
    return graph.compute();
}

// Whether an operation is as ggml promises a MUL_MAT_ID with these experts to be.
bool is_sane(const Stack & stack, const ggml_tensor * result) {
    const ggml_tensor *input = result->src[1], *ids = result->src[2];
    const bool types = input->type == GGML_TYPE_F32 && input->nb[0] == sizeof(float) &&
                       result->type == GGML_TYPE_F32 && result->nb[0] == sizeof(float) &&
                       ids->type == GGML_TYPE_I32;
    return types && input->ne[0] == stack.columns && result->ne[0] == stack.rows &&
           input->ne[2] == ids->ne[1] && result->ne[2] == ids->ne[1] &&
           result->ne[1] == ids->ne[0] && ids->ne[0] % input->ne[1] == 0 && input->ne[3] == 1 &&
           ids->ne[2] == 1 && ids->ne[3] == 1;
}

ggml_status compute_node(Worker & worker, const ggml_tensor * node) {
    const bool is_known = node->op == GGML_OP_MUL_MAT_ID && is_ours(node->src[0]);
    const void * stack = is_known ? node->src[0]->extra : nullptr;
    if (!stack || !is_sane(*static_cast<const Stack *>(stack), node)) {
        log_error("experts are read by an operation that is not known", node->name);
        return GGML_STATUS_FAILED;
    }
    try {
        if (!sort_rows(worker, *static_cast<const Stack *>(stack), node->src[2])) {
            log_error("a token's choice is no expert", node->name);
            return GGML_STATUS_FAILED;
        }
        return multiply(worker, *static_cast<const Stack *>(stack), node);
    } catch (const std::bad_alloc &) {
        log_error("failed to allocate room for rows", node->name);
        return GGML_STATUS_ALLOC_FAILED;
    }
}

// --- the backend, its device and its registry ---

Worker & worker_of(ggml_backend_t backend) { return *static_cast<Worker *>(backend->context); }

ggml_status compute(ggml_backend_t backend, ggml_cgraph * graph) {
    ggml_status status = GGML_STATUS_SUCCESS;
    const int count = lib.ggml_graph_n_nodes(graph);
    for (int index = 0; index < count && status == GGML_STATUS_SUCCESS; index++) {
        const ggml_tensor * node = lib.ggml_graph_node(graph, index);
        const bool is_view = node->op == GGML_OP_RESHAPE || node->op == GGML_OP_VIEW ||
                             node->op == GGML_OP_PERMUTE || node->op == GGML_OP_TRANSPOSE;
        if (node->op != GGML_OP_NONE && !is_view && node->flags & GGML_TENSOR_FLAG_COMPUTE) {
            status = compute_node(worker_of(backend), node);
        }
    }
    return status;
}

ggml_backend_t begin_backend(ggml_backend_dev_t, const char *) {
    static ggml_guid guid = {'g', 'e', 'm', 'c', 'u', 't', ' ', 'e', 'x', 'p', 'e', 'r', 't', 's'};
    std::unique_ptr<Worker> worker(new (std::nothrow) Worker{1, {}, {}, {}, {}, {}, {}, {}});
    ggml_backend * made = worker ? new (std::nothrow) ggml_backend{} : nullptr;
    if (made) {
        made->guid = &guid;
        made->get_name = [](ggml_backend_t) { return "EXPERTS"; };
        made->free = [](ggml_backend_t backend) {
            delete &worker_of(backend);
            delete backend;
        };
        made->graph_compute = compute;
        made->device = &device;
        made->context = worker.release();
    }
    return made;
}

bool takes_operation(ggml_backend_dev_t, const ggml_tensor * node) {
    auto reads = [](const ggml_tensor * source) { return source && is_ours(source); };
    return is_ours(node) || std::any_of(node->src, node->src + GGML_MAX_SRC, reads);
}

void describe_device() {
    device.get_name = [](ggml_backend_dev_t) { return "EXPERTS"; };
    device.get_description = [](ggml_backend_dev_t) { return "experts of different types"; };
    device.get_memory = [](ggml_backend_dev_t, size_t * free, size_t * all) { *free = *all = 0; };
    device.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; };
    device.get_props = [](ggml_backend_dev_t ours, ggml_backend_dev_props * known) {
        *known = {};
        known->name = ours->get_name(ours), known->description = ours->get_description(ours);
        known->type = ours->get_type(ours);
    };
    device.init_backend = begin_backend;
    // Results lie in plain memory, as those of the CPU do.
    device.get_buffer_type = [](ggml_backend_dev_t) { return lib.ggml_backend_cpu_buffer_type(); };
    device.supports_op = takes_operation;
    device.supports_buft = [](ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
        return is_ours(type) || lib.ggml_backend_buft_is_host(type);
    };
    device.reg = &registry;
    registry.api_version = 2;
    registry.get_name = [](ggml_backend_reg_t) { return "EXPERTS"; };
    registry.get_device_count = [](ggml_backend_reg_t) { return size_t(1); };
    registry.get_device = [](ggml_backend_reg_t, size_t) { return &device; };
    registry.get_proc_address = [](ggml_backend_reg_t, const char * name) {
        const ggml_backend_set_n_threads_t set_threads = [](ggml_backend_t backend, int threads) {
            worker_of(backend).threads = threads;
        };
        const bool is_that = !std::strcmp(name, "ggml_backend_set_n_threads");
        return is_that ? reinterpret_cast<void *>(set_threads) : nullptr;
    };
}

// What of ggml's own is laid out in another way than declared here, or null.
const char * difference() {
    ggml_backend_reg_t reg = lib.ggml_backend_cpu_reg();
    ggml_backend_dev_t dev = lib.ggml_backend_reg_dev_get(reg, 0);
    ggml_backend_buffer_type_t type = lib.ggml_backend_cpu_buffer_type();
    if (reg->api_version != 2 || reg->get_name(reg) != lib.ggml_backend_reg_name(reg) ||
        reg->get_device_count(reg) != lib.ggml_backend_reg_dev_count(reg) ||
        reg->get_device(reg, 0) != dev) {
        return "registries";
    }
    if (dev->reg != reg || lib.ggml_backend_dev_backend_reg(dev) != reg ||
        dev->get_name(dev) != lib.ggml_backend_dev_name(dev) ||
        dev->get_type(dev) != lib.ggml_backend_dev_type(dev)) {
        return "devices";
    }
    if (type->device != lib.ggml_backend_buft_get_device(type) || !type->is_host(type) ||
        type->get_name(type) != lib.ggml_backend_buft_name(type) ||
        type->get_alignment(type) != lib.ggml_backend_buft_get_alignment(type)) {
        return "kinds of memory";
    }
    ggml_backend_buffer_t buffer = lib.ggml_backend_buft_alloc_buffer(type, 1000);
    const bool same = buffer && buffer->buft == lib.ggml_backend_buffer_get_type(buffer) &&
                      buffer->size == lib.ggml_backend_buffer_get_size(buffer) &&
                      buffer->usage == lib.ggml_backend_buffer_get_usage(buffer) &&
                      buffer->iface.get_base(buffer) == lib.ggml_backend_buffer_get_base(buffer);
    lib.ggml_backend_buffer_free(buffer);
    ggml_backend_t backend = lib.ggml_backend_dev_init(dev, nullptr);
    const bool alike = backend && backend->device == lib.ggml_backend_get_device(backend) &&
                       backend->guid == lib.ggml_backend_guid(backend) &&
                       backend->get_name(backend) == lib.ggml_backend_name(backend);
    lib.ggml_backend_free(backend);
    return !same ? "buffers" : !alike ? "backends" : nullptr;
}

const char * introduce(void * const * functions) {
    static_assert(sizeof lib + sizeof names[0] == sizeof names, "a name for every function");
    std::memcpy(&lib, functions, sizeof lib);
    const char * what = difference();
    if (!what) {
        describe_device();
        lib.ggml_backend_register(&registry);
    }
    return what;
}

bool has_sane_shape(const char * name, int64_t rows, int64_t columns, int32_t count) {
    constexpr int64_t MOST = int64_t(1) << 24;
    return std::strlen(name) < GGML_MAX_NAME && 0 < rows && rows < MOST && 0 < columns &&
           columns < MOST && 0 < count && count <= 1 << 16;
}

} // namespace

// --- what Python calls ---

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The names of the functions of ggml that are wanted, up to a null.
EXPORTED const char * const * experts_names() { return names; }

// Take those functions, in their order, and make the device known to llama.cpp; later calls do
// nothing more. Returns what of ggml's insides is laid out in another way than here, or null.
EXPORTED const char * experts_begin(void * const * functions) {
    static const char * const what = introduce(functions);
    return what;
}

// A table for a file, or the parts of one, whose descriptors stay the caller's. Null: no memory.
EXPORTED Table * experts_new(const int32_t * files, int32_t count, bool validate, bool repack) {
    try {
        auto made = std::make_unique<Table>();
        made->files.assign(files, files + count);
        made->validate = validate, made->repack = repack;
        made->memory = {memory_name, begin_memory, memory_alignment, nullptr,
                        memory_size, nullptr,      &device,          made.get()};
        return made.release();
    } catch (const std::bad_alloc &) {
        return nullptr;
    }
}

EXPORTED void experts_free(Table * table) { delete table; }

// The first thing that went wrong with a table; "": nothing did.
EXPORTED const char * experts_error(const Table * table) { return table->error.c_str(); }

// The kind of memory that the stacks have to be loaded into.
EXPORTED ggml_backend_buffer_type_t experts_memory(Table * table) { return &table->memory; }

// Add a stack of so many experts [rows, columns], each with its type, its file and where it begins
// there. Returns the bytes that they will take; 0: see experts_error.
EXPORTED uint64_t experts_add(Table * table, const char * name, int64_t rows, int64_t columns,
                              int32_t count, const int32_t * types, const int32_t * files,
                              const uint64_t * offsets) {
    try {
        if (!has_sane_shape(name, rows, columns, count) || table->stacks.count(name)) {
            return table->fail(std::string(name) + " is there twice, or of an absurd shape");
        }
        Stack stack = {name, rows, columns, {}, {}, {}, 0};
        for (int32_t expert = 0; expert < count; expert++) {
            const int32_t file = files[expert];
            if (file < 0 || size_t(file) >= table->files.size() || offsets[expert] >> 62 ||
                !multiplies(types[expert], columns)) {
                return table->fail(std::string(name) + ", expert " + std::to_string(expert) +
                                   ": ggml does not multiply rows of " + std::to_string(columns) +
                                   " of its type " + std::to_string(types[expert]));
            }
            stack.sources.push_back({table->files[size_t(file)], offsets[expert]});
        }
        sort_experts(stack, types, table->repack);
        return table->stacks.emplace(name, std::move(stack)).first->second.size;
    } catch (const std::bad_alloc &) {
        return 0;
    }
}
