// The insides of ggml's backends, which its public headers leave out (interface version 2).
//
// Declared as far as they are used here: what is only left empty or passed over is a `void *`. All
// of it is compared with what the library's own accessors say before anything of ours is made.

#pragma once

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

extern "C" {

struct ggml_backend_buffer_type {
    const char * (*get_name)(ggml_backend_buffer_type_t);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
    size_t (*get_alignment)(ggml_backend_buffer_type_t);
    size_t (*get_max_size)(ggml_backend_buffer_type_t);
    size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const ggml_tensor *);
    bool (*is_host)(ggml_backend_buffer_type_t);
    ggml_backend_dev_t device;
    void * context;
};

struct ggml_backend_buffer_i {
    void (*free_buffer)(ggml_backend_buffer_t);
    void * (*get_base)(ggml_backend_buffer_t);
    ggml_status (*init_tensor)(ggml_backend_buffer_t, ggml_tensor *);
    void (*memset_tensor)(ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t);
    void (*set_tensor)(ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t);
    void (*get_tensor)(ggml_backend_buffer_t, const ggml_tensor *, void *, size_t, size_t);
    void * set_tensor_2d;
    void * get_tensor_2d;
    void * cpy_tensor;
    void (*clear)(ggml_backend_buffer_t, uint8_t);
    void * reset;
};

struct ggml_backend_buffer {
    ggml_backend_buffer_i iface;
    ggml_backend_buffer_type_t buft;
    void * context;
    size_t size;
    ggml_backend_buffer_usage usage;
};

struct ggml_backend {
    ggml_guid_t guid;
    const char * (*get_name)(ggml_backend_t);
    void (*free)(ggml_backend_t);
    void * tensors_async[5];
    void * synchronize;
    void * graph_plans[4];
    ggml_status (*graph_compute)(ggml_backend_t, ggml_cgraph *);
    void * events[2];
    void * graph_optimize;
    ggml_backend_dev_t device;
    void * context;
};

struct ggml_backend_device {
    const char * (*get_name)(ggml_backend_dev_t);
    const char * (*get_description)(ggml_backend_dev_t);
    void (*get_memory)(ggml_backend_dev_t, size_t * free, size_t * total);
    enum ggml_backend_dev_type (*get_type)(ggml_backend_dev_t);
    void (*get_props)(ggml_backend_dev_t, ggml_backend_dev_props *);
    ggml_backend_t (*init_backend)(ggml_backend_dev_t, const char *);
    ggml_backend_buffer_type_t (*get_buffer_type)(ggml_backend_dev_t);
    void * get_host_buffer_type;
    void * buffer_from_host_ptr;
    bool (*supports_op)(ggml_backend_dev_t, const ggml_tensor *);
    bool (*supports_buft)(ggml_backend_dev_t, ggml_backend_buffer_type_t);
    void * offload_op;
    void * events[3];
    ggml_backend_reg_t reg;
    void * context;
};

struct ggml_backend_reg {
    int api_version;
    const char * (*get_name)(ggml_backend_reg_t);
    size_t (*get_device_count)(ggml_backend_reg_t);
    ggml_backend_dev_t (*get_device)(ggml_backend_reg_t, size_t);
    void * (*get_proc_address)(ggml_backend_reg_t, const char *);
    void * context;
};

ggml_backend_buffer_t ggml_backend_buffer_init(ggml_backend_buffer_type_t, ggml_backend_buffer_i,
                                               void * context, size_t);
void ggml_log_internal(ggml_log_level, const char *, ...);

} // extern "C"

// The functions of ggml that are called. They are not linked but handed in, so that they are those
// of the very libraries that llama.cpp uses: a process may find several copies.
#define GGML_FUNCTIONS(X)                                                                          \
    X(ggml_backend_buffer_free) X(ggml_backend_buffer_get_base) X(ggml_backend_buffer_get_size)    \
    X(ggml_backend_buffer_get_type) X(ggml_backend_buffer_get_usage) X(ggml_backend_buffer_init)   \
    X(ggml_backend_buft_alloc_buffer) X(ggml_backend_buft_get_alignment)                           \
    X(ggml_backend_buft_get_alloc_size) X(ggml_backend_buft_get_device)                            \
    X(ggml_backend_buft_is_host) X(ggml_backend_buft_name) X(ggml_backend_cpu_buffer_type)         \
    X(ggml_backend_cpu_reg) X(ggml_backend_dev_backend_reg) X(ggml_backend_dev_init)               \
    X(ggml_backend_dev_name) X(ggml_backend_dev_supports_op) X(ggml_backend_dev_type)              \
    X(ggml_backend_free) X(ggml_backend_get_device) X(ggml_backend_guid) X(ggml_backend_name)      \
    X(ggml_backend_reg_dev_count) X(ggml_backend_reg_dev_get)                                      \
    X(ggml_backend_reg_get_proc_address) X(ggml_backend_reg_name) X(ggml_backend_register)         \
    X(ggml_backend_tensor_alloc) X(ggml_backend_tensor_set) X(ggml_blck_size)                      \
    X(ggml_build_forward_expand) X(ggml_custom_4d) X(ggml_free) X(ggml_get_type_traits_cpu)        \
    X(ggml_graph_compute) X(ggml_graph_n_nodes) X(ggml_graph_node) X(ggml_graph_overhead_custom)   \
    X(ggml_graph_plan) X(ggml_init) X(ggml_log_internal) X(ggml_mul_mat_id) X(ggml_nbytes)         \
    X(ggml_new_graph_custom) X(ggml_new_tensor) X(ggml_row_size) X(ggml_tensor_overhead)           \
    X(ggml_validate_row_data)

#define GGML_MEMBER(name) decltype(&::name) name;
#define GGML_NAME(name) #name,

struct Functions {
    GGML_FUNCTIONS(GGML_MEMBER)
};
