/* The C ABI of libpyllm.
 *
 * C11. Handles are opaque, integers are sized, names are pyllm_<noun>_<verb>. Every function that can fail returns a
 * pyllm_status and leaves a message (value, limit) and a hint (way out) for the calling thread. No exception crosses in either
 * direction, and no argument ends the process: what upstream would assert on is checked here first.
 *
 * A handle is used by one thread at a time. Two exceptions may be called from any thread: pyllm_context_cancel and the
 * functions of the library noun. Handles keep what they need alive: a context its model, a drafter its contexts.
 */
#ifndef PYLLM_H
#define PYLLM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define PYLLM_API __declspec(dllexport)
#else
#define PYLLM_API __attribute__((visibility("default")))
#endif

/* Raised whenever a declaration below changes; the package refuses a library with another number. */
#define PYLLM_ABI_VERSION 2

/* ---------------------------------------------------------------- library */

typedef int32_t pyllm_status;

enum {
    PYLLM_OK = 0,
    PYLLM_INVALID_ARGUMENT = 1, /* a number or a name outside what is possible */
    PYLLM_NOT_FOUND = 2,        /* no such file or key */
    PYLLM_MODEL_FORMAT = 3,     /* not a GGUF model, truncated, unknown architecture */
    PYLLM_INCOMPATIBLE = 4,     /* two models that do not belong together */
    PYLLM_UNSUPPORTED = 5,      /* well-formed, but this model, build or device cannot do it */
    PYLLM_LIMIT = 6,            /* a configured limit was passed: batch, sequences, buffer */
    PYLLM_CONTEXT_FULL = 7,     /* no free cells in the KV cache */
    PYLLM_OUT_OF_MEMORY = 8,
    PYLLM_STATE = 9,            /* saved state that does not fit */
    PYLLM_DECODE = 10,          /* the graph failed */
    PYLLM_CANCELLED = 11,
    PYLLM_INTERNAL = 12,        /* an exception or a broken invariant inside the library */
    PYLLM_STATUS_COUNT = 13
};

PYLLM_API const char * pyllm_version(void);          /* of the package that this library was built for */
PYLLM_API int32_t      pyllm_abi_version(void);
PYLLM_API const char * pyllm_upstream_commit(void);
PYLLM_API const char * pyllm_build_info(void);       /* compiler, backends, CPU features: one line */
PYLLM_API const char * pyllm_status_name(pyllm_status status);

/* Of the last failed call of this thread; empty strings before the first. Valid until the next failing call. */
PYLLM_API const char * pyllm_error_message(void);
PYLLM_API const char * pyllm_error_hint(void);

/* Log lines at or above this level go to stderr: 1 debug, 2 info, 3 warning, 4 error, 5 none (the default). Errors are
 * always kept for pyllm_error_message. */
PYLLM_API void pyllm_log_set_level(int32_t level);

/* Threads that upstream's server would use on this machine: physical cores that are fit for matrix work. */
PYLLM_API int32_t pyllm_default_threads(void);

/* -1 if the name is not a KV cache type of ggml. */
PYLLM_API int32_t      pyllm_kv_type_from_name(const char * name);
PYLLM_API const char * pyllm_kv_type_name(int32_t type);

/* ---------------------------------------------------------------- device */

enum { PYLLM_DEVICE_CPU = 0, PYLLM_DEVICE_GPU = 1, PYLLM_DEVICE_IGPU = 2, PYLLM_DEVICE_ACCEL = 3 };

typedef struct pyllm_device_info {
    char     name[64];          /* as --device takes it: CUDA0, CPU */
    char     description[128];
    char     backend[32];       /* CUDA, HIP, Vulkan, CPU */
    int32_t  type;
    int32_t  reserved;
    uint64_t memory_total;      /* bytes; 0 where the backend does not say */
    uint64_t memory_free;
} pyllm_device_info;

PYLLM_API int32_t      pyllm_device_count(void);
PYLLM_API pyllm_status pyllm_device_get(int32_t index, pyllm_device_info * info);

/* ---------------------------------------------------------------- model */

typedef struct pyllm_model pyllm_model;

typedef struct pyllm_model_params {
    int32_t n_gpu_layers;   /* negative: all */
    int32_t split_mode;     /* 0 none, 1 layer, 2 row, 3 tensor */
    int32_t main_gpu;
    bool    use_mmap;
    bool    check_tensors;
    bool    vocab_only;     /* of the info only architecture, description and n_vocab are known then */
    bool    load_mtp;       /* the prediction heads of a file that has some; a drafter needs them */
    const char * devices;   /* comma-separated names; NULL or empty: all */
} pyllm_model_params;

typedef struct pyllm_model_info {
    char     architecture[64];
    char     description[128];
    int32_t  n_vocab;
    int32_t  n_embd;
    int32_t  n_embd_out;         /* width of a hidden row handed to a drafter */
    int32_t  n_layer;
    int32_t  n_layer_nextn;      /* prediction heads inside the file */
    int32_t  n_head;
    int32_t  n_head_kv;
    int32_t  n_ctx_train;
    int32_t  n_swa;              /* 0: no sliding window */
    int32_t  n_target_layers;    /* of a DFlash drafter: layers that it taps in its target */
    int32_t  block_size;         /* of a DFlash drafter; 0 otherwise */
    bool     recurrent;
    bool     hybrid;
    bool     has_encoder;
    bool     has_decoder;
    uint64_t n_params;
    uint64_t size;               /* bytes of all tensors */
} pyllm_model_info;

typedef struct pyllm_vocab_info {
    int32_t bos, eos, eot, nl, pad, mask; /* -1: the vocabulary has none */
    bool    add_bos;
    bool    add_eos;
} pyllm_vocab_info;

PYLLM_API pyllm_model_params pyllm_model_params_default(void);
PYLLM_API pyllm_status pyllm_model_load(const char * path, const pyllm_model_params * params, pyllm_model ** out);
PYLLM_API void         pyllm_model_free(pyllm_model * model);
PYLLM_API pyllm_status pyllm_model_get_info(const pyllm_model * model, pyllm_model_info * info);
PYLLM_API pyllm_status pyllm_model_get_vocab(const pyllm_model * model, pyllm_vocab_info * info);
/* Text of a metadata key. *length is that of the whole text; at most capacity - 1 bytes and a zero are written. */
PYLLM_API pyllm_status pyllm_model_get_meta(const pyllm_model * model, const char * key, char * text, size_t capacity, size_t * length);
PYLLM_API pyllm_status pyllm_model_get_chat_template(const pyllm_model * model, const char * name, char * text, size_t capacity, size_t * length);
/* *n_tokens is the number needed; PYLLM_LIMIT when that is over capacity, and nothing is written then. */
PYLLM_API pyllm_status pyllm_model_tokenize(const pyllm_model * model, const char * text, size_t length, bool add_special, bool parse_special,
                                            int32_t * tokens, size_t capacity, size_t * n_tokens);
/* Bytes of one token: not always whole UTF-8 characters. special: render control tokens too. */
PYLLM_API pyllm_status pyllm_model_token_to_piece(const pyllm_model * model, int32_t token, bool special, char * text, size_t capacity, size_t * length);
PYLLM_API pyllm_status pyllm_model_token_is_eog(const pyllm_model * model, int32_t token, bool * is_eog);

/* ---------------------------------------------------------------- context */

typedef struct pyllm_context pyllm_context;

typedef struct pyllm_context_params {
    uint32_t n_ctx;          /* cells over all sequences (unified) or n_seq_max times the cells of one; 0: as trained */
    uint32_t n_batch;        /* tokens in one decode */
    uint32_t n_ubatch;       /* tokens in one graph */
    uint32_t n_seq_max;
    uint32_t n_rs_seq;       /* recurrent-state snapshots per sequence: how many tokens can be rolled back */
    uint32_t n_outputs_max;  /* rows of logits in one decode; 0: n_batch */
    int32_t  n_threads;      /* 0: pyllm_default_threads() */
    int32_t  n_threads_batch;
    int32_t  type_k;         /* ggml types, see pyllm_kv_type_from_name */
    int32_t  type_v;
    int32_t  flash_attn;     /* -1 auto, 0 off, 1 on */
    bool     kv_unified;
    bool     swa_full;
    bool     offload_kqv;
    bool     trace;          /* record every attention node; slower */
} pyllm_context_params;

/* How a sequence can be cut back. */
enum { PYLLM_ROLLBACK_NONE = 0, PYLLM_ROLLBACK_ANY = 1, PYLLM_ROLLBACK_BOUNDED = 2, PYLLM_ROLLBACK_CHECKPOINT = 3 };

typedef struct pyllm_context_info {
    uint32_t n_ctx;
    uint32_t n_ctx_seq;      /* positions that one sequence can hold */
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_rs_seq;
    int32_t  rollback;       /* any tail; at most n_rs_seq tokens; only by restoring a checkpoint */
    bool     can_shift;
    bool     causal;
    bool     kv_unified;
    bool     reserved;
} pyllm_context_info;

PYLLM_API pyllm_context_params pyllm_context_params_default(void);
PYLLM_API pyllm_status pyllm_context_create(pyllm_model * model, const pyllm_context_params * params, pyllm_context ** out);
PYLLM_API void         pyllm_context_free(pyllm_context * context);
PYLLM_API pyllm_status pyllm_context_get_info(pyllm_context * context, pyllm_context_info * info);
/* Makes the running decode, or else the next one, return PYLLM_CANCELLED. Any thread. CPU graphs stop between nodes. */
PYLLM_API void         pyllm_context_cancel(pyllm_context * context);
/* Row of n_vocab floats for a batch entry that asked for logits; valid until the next decode. */
PYLLM_API pyllm_status pyllm_context_get_logits(pyllm_context * context, int32_t index, const float ** row, int32_t * n);

/* Taps for drafters. nextn: hidden rows before the output head, n_embd_out wide; masked: only of entries with logits. */
PYLLM_API pyllm_status pyllm_context_enable_nextn(pyllm_context * context, bool enable, bool masked);
PYLLM_API pyllm_status pyllm_context_get_nextn(pyllm_context * context, int32_t index, const float ** row, int32_t * n);
PYLLM_API pyllm_status pyllm_context_enable_layer_input(pyllm_context * context, int32_t layer, bool enable);
/* All rows of the last decode, n_rows x n floats, row-major in batch order. */
PYLLM_API pyllm_status pyllm_context_get_layer_input(pyllm_context * context, int32_t layer, const float ** rows, int32_t * n_rows, int32_t * n);

/* ---------------------------------------------------------------- batch */

typedef struct pyllm_batch pyllm_batch;

enum { PYLLM_LOGITS_NONE = 0, PYLLM_LOGITS_LAST = 1, PYLLM_LOGITS_ALL = 2 };

PYLLM_API pyllm_status pyllm_batch_create(pyllm_context * context, pyllm_batch ** out);
PYLLM_API void         pyllm_batch_free(pyllm_batch * batch);
PYLLM_API void         pyllm_batch_clear(pyllm_batch * batch);
PYLLM_API int32_t      pyllm_batch_size(const pyllm_batch * batch);
/* Appends tokens of one sequence at positions pos0, pos0 + 1, …; *first is the index of the first. All or nothing. */
PYLLM_API pyllm_status pyllm_batch_add(pyllm_batch * batch, int32_t seq, int32_t pos0, const int32_t * tokens, int32_t n_tokens, int32_t logits, int32_t * first);
/* One decode of the whole batch. PYLLM_CONTEXT_FULL leaves the memory as it was; after PYLLM_DECODE or PYLLM_CANCELLED the
 * sequences of the batch may hold part of it: cut them back to where they were. */
PYLLM_API pyllm_status pyllm_context_decode(pyllm_context * context, pyllm_batch * batch);

/* ---------------------------------------------------------------- memory: one sequence's cells. Half-open ranges; end -1: to the end */

PYLLM_API pyllm_status pyllm_memory_clear(pyllm_context * context);
PYLLM_API pyllm_status pyllm_memory_remove(pyllm_context * context, int32_t seq, int32_t begin, int32_t end);
PYLLM_API pyllm_status pyllm_memory_copy(pyllm_context * context, int32_t from_seq, int32_t to_seq, int32_t begin, int32_t end);
PYLLM_API pyllm_status pyllm_memory_keep(pyllm_context * context, int32_t seq);
PYLLM_API pyllm_status pyllm_memory_shift(pyllm_context * context, int32_t seq, int32_t begin, int32_t end, int32_t delta);
/* Smallest and largest position held, -1 and -1 when empty. */
PYLLM_API pyllm_status pyllm_memory_range(pyllm_context * context, int32_t seq, int32_t * first, int32_t * last);

/* ---------------------------------------------------------------- state: one sequence's memory as bytes */

enum { PYLLM_STATE_WHOLE = 0, PYLLM_STATE_PARTIAL = 1 }; /* partial: only what cannot be rolled back (SWA, recurrent) */

PYLLM_API pyllm_status pyllm_state_size(pyllm_context * context, int32_t seq, int32_t flags, size_t * size);
PYLLM_API pyllm_status pyllm_state_get(pyllm_context * context, int32_t seq, int32_t flags, uint8_t * data, size_t capacity, size_t * size);
PYLLM_API pyllm_status pyllm_state_set(pyllm_context * context, int32_t seq, int32_t flags, const uint8_t * data, size_t size);

/* ---------------------------------------------------------------- sampler */

typedef struct pyllm_sampler pyllm_sampler;

typedef struct pyllm_sampler_params {
    uint32_t seed;            /* 0xFFFFFFFF: random */
    float    temperature;     /* <= 0: greedy */
    int32_t  top_k;           /* <= 0: all */
    float    top_p;           /* 1: off */
    float    min_p;           /* 0: off */
    float    repeat_penalty;  /* 1: off */
    float    frequency_penalty;
    float    presence_penalty;
    int32_t  penalty_last_n;
    bool     ignore_eos;
    bool     reserved[3];
    const char * grammar;     /* GBNF; NULL: none */
} pyllm_sampler_params;

PYLLM_API pyllm_sampler_params pyllm_sampler_params_default(void);
PYLLM_API pyllm_status pyllm_sampler_create(pyllm_model * model, const pyllm_sampler_params * params, pyllm_sampler ** out);
PYLLM_API void         pyllm_sampler_free(pyllm_sampler * sampler);
PYLLM_API pyllm_status pyllm_sampler_reset(pyllm_sampler * sampler);
/* Feeds prompt tokens to the penalties (generated: false) or generated ones to penalties and grammar (true). */
PYLLM_API pyllm_status pyllm_sampler_accept(pyllm_sampler * sampler, const int32_t * tokens, int32_t n_tokens, bool generated);
/* Verification: samples at index, index + 1, …, and goes on while the sampled token is the drafted one.
 * Writes 1 to n_draft + 1 tokens; all have been accepted by the sampler. n_draft 0 is plain sampling. */
PYLLM_API pyllm_status pyllm_sampler_verify(pyllm_sampler * sampler, pyllm_context * context, int32_t index, const int32_t * draft, int32_t n_draft,
                                            int32_t * tokens, int32_t * n_tokens);

/* ---------------------------------------------------------------- drafter */

typedef struct pyllm_drafter pyllm_drafter;

typedef struct pyllm_drafter_params {
    const char * types;       /* upstream's names, in order of priority: draft-mtp, draft-dflash, ngram-map-k, … */
    int32_t  n_max;           /* tokens drafted at most; <= 0: the type's default */
    int32_t  n_min;
    float    p_min;
    int32_t  ngram_size_n;    /* <= 0: the type's default */
    int32_t  ngram_size_m;
    int32_t  ngram_min_hits;
    int32_t  type_k;          /* of the draft cache, where the drafter has its own */
    int32_t  type_v;
    int32_t  n_threads;       /* 0: as the target */
    int32_t  reserved;
} pyllm_drafter_params;

typedef struct pyllm_drafter_info {
    int32_t  n_max;           /* after the limits of block size and chained heads */
    int32_t  n_seq;
    int32_t  n_ubatch;        /* of the draft context; 0: none */
    bool     has_context;
    bool     shares_memory;   /* reads the target's KV cache and has none of its own */
    bool     chained_heads;
    bool     can_shift;
} pyllm_drafter_info;

/* One slot's wish: at most n_max tokens after `last`, which stands at position pos and is not in the memory yet. */
typedef struct pyllm_draft_request {
    int32_t seq;
    int32_t last;
    int32_t pos;
    int32_t n_max;
    int32_t * tokens;         /* out, room for n_max */
    int32_t n_tokens;         /* out */
} pyllm_draft_request;

typedef struct pyllm_drafter_stats {
    uint64_t n_drafts;        /* calls that produced at least one token, summed over sequences */
    uint64_t n_drafted;
    uint64_t n_accepted;
    uint64_t n_failures;      /* decodes of the draft context that failed: the slot went on without a draft */
} pyllm_drafter_stats;

PYLLM_API pyllm_drafter_params pyllm_drafter_params_default(void);
/* draft_model NULL: the drafter is inside the target's file (nextn) or needs no model (n-gram). */
PYLLM_API pyllm_status pyllm_drafter_create(pyllm_context * target, pyllm_model * draft_model, const pyllm_drafter_params * params, pyllm_drafter ** out);
PYLLM_API void         pyllm_drafter_free(pyllm_drafter * drafter);
PYLLM_API pyllm_status pyllm_drafter_get_info(pyllm_drafter * drafter, pyllm_drafter_info * info);
PYLLM_API pyllm_status pyllm_drafter_get_stats(const pyllm_drafter * drafter, pyllm_drafter_stats * stats);
/* After each successful decode of the target, prefill too: takes over its hidden rows or layer inputs. */
PYLLM_API pyllm_status pyllm_drafter_process(pyllm_drafter * drafter, const pyllm_batch * batch);
/* When a sequence starts to generate: the tokens that its target memory holds. */
PYLLM_API pyllm_status pyllm_drafter_begin(pyllm_drafter * drafter, int32_t seq, const int32_t * tokens, int32_t n_tokens);
/* Drafts for all requests in one go. A failing drafter leaves n_tokens 0 and is counted, never an error of the call. */
PYLLM_API pyllm_status pyllm_drafter_draft(pyllm_drafter * drafter, pyllm_draft_request * requests, int32_t n_requests);
/* After verification: how many drafted tokens were accepted, and the tokens that the target memory has gained. */
PYLLM_API pyllm_status pyllm_drafter_accept(pyllm_drafter * drafter, int32_t seq, int32_t n_accepted, const int32_t * tokens, int32_t n_tokens);
/* Cuts a sequence of the draft memory back to positions [0, end); -1 keeps all but forgets what belongs to a draft. */
PYLLM_API pyllm_status pyllm_drafter_truncate(pyllm_drafter * drafter, int32_t seq, int32_t end);
/* The target discarded n_discard tokens after n_keep and moved the rest down; so does the drafter. */
PYLLM_API pyllm_status pyllm_drafter_shift(pyllm_drafter * drafter, int32_t seq, int32_t n_keep, int32_t n_discard);

/* ---------------------------------------------------------------- trace of attention nodes */

typedef struct pyllm_attention_node {
    char     name[64];        /* of the node: layer and role */
    char     device[64];      /* where its result was computed; CPU on a GPU model is what to look for */
    int32_t  op;              /* 1 FLASH_ATTN_EXT, 2 SOFT_MAX(QK) */
    int32_t  type_q, type_k, type_v;
    int64_t  ne_q[4], ne_k[4], ne_v[4], ne_mask[4];    /* ggml order; all 0 where absent */
    uint64_t nb_q[4], nb_k[4], nb_v[4], nb_mask[4];    /* bytes */
    float    scale, max_bias, softcap;
    int32_t  has_sinks;
    int32_t  is_view;         /* V is a view of K */
    int32_t  is_dense;        /* K and V are densely allocated */
    int32_t  align;           /* bytes: largest power of two up to 16 in all strides and offsets of unquantised Q, K and V */
    int32_t  mask_align;
    int32_t  n_kv_max;        /* KV rows that one query may see at most; 0: not said */
    int32_t  reserved;
    uint64_t n_calls;         /* nodes with exactly this description */
} pyllm_attention_node;

/* Needs pyllm_context_params.trace. Distinct nodes since creation or clear, in order of first appearance. */
PYLLM_API int32_t      pyllm_trace_count(const pyllm_context * context);
PYLLM_API pyllm_status pyllm_trace_get(const pyllm_context * context, int32_t index, pyllm_attention_node * node);
PYLLM_API void         pyllm_trace_clear(pyllm_context * context);

/* ---------------------------------------------------------------- route */

/* Axes of an attention node and its device, in the order of pyllm/routes/axes.py. The first five belong to the device. */
enum {
    PYLLM_ROUTE_VENDOR      = 0,  /* 0 NVIDIA, 1 AMD */
    PYLLM_ROUTE_ARCH        = 1,  /* as ggml numbers it: 860; AMD from 0x1000000 on */
    PYLLM_ROUTE_MATRIX      = 2,  /* matrix units: 0 none, 1 Volta, 2 Turing, 3 Ampere and later, 4 MFMA, 5 WMMA */
    PYLLM_ROUTE_FAST_FP16   = 3,
    PYLLM_ROUTE_SMEM        = 4,  /* bytes of shared memory that a block may opt in to */
    PYLLM_ROUTE_HEAD        = 5,  /* d_k << 16 | d_v */
    PYLLM_ROUTE_GQA         = 6,
    PYLLM_ROUTE_N_Q         = 7,
    PYLLM_ROUTE_N_KV        = 8,
    PYLLM_ROUTE_STREAMS     = 9,
    PYLLM_ROUTE_KV          = 10, /* type_k << 8 | type_v, in the order f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0 iq4_nl */
    PYLLM_ROUTE_QUANTISED   = 11,
    PYLLM_ROUTE_MASK        = 12, /* 0 none, 1 one per stream, 2 one for several streams, 3 one per head */
    PYLLM_ROUTE_ALIBI       = 13,
    PYLLM_ROUTE_SOFTCAP     = 14,
    PYLLM_ROUTE_SINKS       = 15,
    PYLLM_ROUTE_ALIGN       = 16, /* bytes */
    PYLLM_ROUTE_MASK_ALIGN  = 17, /* bytes */
    PYLLM_ROUTE_VIEW        = 18, /* V is a view of K */
    PYLLM_ROUTE_CONVERTIBLE = 19, /* K and V can be converted to f16 as they lie */
    PYLLM_ROUTE_ROWS        = 20, /* rows are contiguous */
    PYLLM_ROUTE_WIDE        = 21, /* 0: offsets below 2 GiB, 1: rows of K, V or mask lie beyond, 2: heads or rows of Q do */
    PYLLM_ROUTE_SPARSITY    = 22, /* n_kv over the KV rows that one query may see; 0: not said */
    PYLLM_ROUTE_AXIS_COUNT  = 23
};

enum {
    PYLLM_ROUTE_VEC       = 0,
    PYLLM_ROUTE_TILE      = 1,
    PYLLM_ROUTE_MMA       = 2,
    PYLLM_ROUTE_SPARSE    = 3,
    PYLLM_ROUTE_REFERENCE = 4,
    PYLLM_ROUTE_COUNT     = 5
};

/* Phases: by the number of query rows, except draft, which is whatever a drafter computes. */
enum { PYLLM_PHASE_PREFILL = 0, PYLLM_PHASE_DECODE = 1, PYLLM_PHASE_VERIFY = 2, PYLLM_PHASE_DRAFT = 3, PYLLM_PHASE_COUNT = 4 };

typedef struct pyllm_route_key {
    int32_t axis[PYLLM_ROUTE_AXIS_COUNT];
    int32_t reserved;
} pyllm_route_key;

typedef struct pyllm_route_decision {
    int32_t row;     /* in the table; -1: none, the table is not total */
    int32_t route;
    int32_t ncols1;  /* query rows of a tile; 0: the route chooses */
    int32_t ncols2;  /* query heads of a tile */
} pyllm_route_decision;

typedef struct pyllm_route_count {
    char     device[64];     /* CUDA0, CPU */
    int32_t  route;          /* -1: attention that no route of ours decides (the CPU's) */
    int32_t  phase;
    uint64_t n_nodes;        /* nodes issued since the library was loaded */
} pyllm_route_count;

/* Makes `text` the process's table; NULL or empty: the built-in one. Refused as a whole, with the line, when it is of another version,
 * not understood, has a row that can never decide, or does not end with the reference route. */
PYLLM_API pyllm_status pyllm_route_table_set(const char * text, size_t length);
/* Text of the built-in table; *length is that of the whole. */
PYLLM_API pyllm_status pyllm_route_table_get_default(char * text, size_t capacity, size_t * length);
/* Rows of the table in force. */
PYLLM_API pyllm_status pyllm_route_table_count(int32_t * n_rows);
/* Decides one key. failed, if not NULL, gets for each row before the decided one the index of its first condition that does not hold. */
PYLLM_API pyllm_status pyllm_route_decide(const pyllm_route_key * key, pyllm_route_decision * decision, int32_t * failed, size_t capacity);
/* The tile with which a route runs the key when it is forced; PYLLM_UNSUPPORTED with the reason if it cannot. */
PYLLM_API pyllm_status pyllm_route_force_key(const pyllm_route_key * key, int32_t route, pyllm_route_decision * decision);
/* Forces a route in a phase, of every node of the process; route -1 lifts it, phase -1 is all phases. A node that cannot run by it fails its
 * graph: there is no fall back. */
PYLLM_API pyllm_status pyllm_route_force(int32_t phase, int32_t route);
/* Whether attention of a layer that lies on a GPU may be computed on the CPU; otherwise that is an error when the context is made. */
PYLLM_API void         pyllm_route_allow_cpu(bool allow);
/* Takes a row out for an architecture, as finding no room for its kernel does; row -1 puts all back. */
PYLLM_API pyllm_status pyllm_route_block(int32_t arch, int32_t row);
/* Nanoseconds for one decision, measured over n keys in turn: of keys seen before, and of keys not seen. */
PYLLM_API pyllm_status pyllm_route_benchmark(const pyllm_route_key * keys, size_t n, double * ns_seen, double * ns_new);
/* *count is the number there is. */
PYLLM_API pyllm_status pyllm_route_counts(pyllm_route_count * counts, size_t capacity, size_t * count);
/* Facts of a GPU that a key needs, in its first five axes; PYLLM_UNSUPPORTED for a device that is no CUDA or HIP GPU. */
PYLLM_API pyllm_status pyllm_route_device(int32_t index, pyllm_route_key * key);

#ifdef __cplusplus
}
#endif
#endif /* PYLLM_H */
