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
#define PYLLM_ABI_VERSION 6

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
PYLLM_API const char * pyllm_kernels(void);          /* digest of the attention kernels' sources: what was measured of others does not hold */
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
    uint32_t n_outputs_max;  /* rows of logits in one decode; 0: n_batch, and no tokens are taken out of a sliding window after it */
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
/* Whether the input of a layer, or with layer -1 the hidden rows, are extracted: by the caller, or for a drafter. */
PYLLM_API pyllm_status pyllm_context_get_tap(pyllm_context * context, int32_t layer, bool * enabled);
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

/* Flags. Partial: only what cannot be rolled back (SWA, recurrent). Device: the memory stays on its device and the bytes only stand for it; a
 * sequence has one such state, the last that was taken, and PYLLM_UNSUPPORTED says that it has to go to the host. */
enum { PYLLM_STATE_WHOLE = 0, PYLLM_STATE_PARTIAL = 1, PYLLM_STATE_DEVICE = 2 };

PYLLM_API pyllm_status pyllm_state_size(pyllm_context * context, int32_t seq, int32_t flags, size_t * size);
PYLLM_API pyllm_status pyllm_state_get(pyllm_context * context, int32_t seq, int32_t flags, uint8_t * data, size_t capacity, size_t * size);
PYLLM_API pyllm_status pyllm_state_set(pyllm_context * context, int32_t seq, int32_t flags, const uint8_t * data, size_t size);

/* ---------------------------------------------------------------- checkpoint file: facts and sections of bytes, see native/state/README.md */

typedef struct pyllm_checkpoint_file pyllm_checkpoint_file;

typedef struct pyllm_checkpoint_info {
    uint64_t size;            /* bytes of the file */
    uint64_t n_facts;
    uint64_t n_sections;
    uint32_t version;         /* of the format */
    uint32_t reserved;
} pyllm_checkpoint_info;

typedef struct pyllm_checkpoint_section {
    char     name[40];
    uint64_t offset;          /* in the file */
    uint64_t size;            /* bytes */
    uint64_t checksum;        /* XXH3, 64 bits */
} pyllm_checkpoint_section;

/* Writes facts (UTF-8) and sections in place of the file at `path`. At any moment, also when the process is killed, the old file or the new one is
 * there, whole; after a failure the old one. PYLLM_NOT_FOUND: no such folder; PYLLM_LIMIT: no space or not allowed, with the system's reason. */
PYLLM_API pyllm_status pyllm_checkpoint_file_write(const char * path, const char * const * keys, const char * const * values, size_t n_facts,
                                                   const char * const * names, const uint8_t * const * datas, const size_t * sizes, size_t n_sections);
/* Checks all but the bytes of the sections. PYLLM_STATE: not such a file, damaged, or of a newer format. */
PYLLM_API pyllm_status pyllm_checkpoint_file_open(const char * path, pyllm_checkpoint_file ** out);
PYLLM_API void         pyllm_checkpoint_file_close(pyllm_checkpoint_file * file);
PYLLM_API pyllm_status pyllm_checkpoint_file_get_info(const pyllm_checkpoint_file * file, pyllm_checkpoint_info * info);
/* In the writer's order; the texts are valid until the file is closed. */
PYLLM_API pyllm_status pyllm_checkpoint_file_get_fact(const pyllm_checkpoint_file * file, size_t index, const char ** key, const char ** value);
PYLLM_API pyllm_status pyllm_checkpoint_file_get_section(const pyllm_checkpoint_file * file, size_t index, pyllm_checkpoint_section * section);
/* A section's bytes, checked; after PYLLM_STATE the buffer holds what was found. */
PYLLM_API pyllm_status pyllm_checkpoint_file_read(const pyllm_checkpoint_file * file, const char * name, uint8_t * data, size_t capacity, size_t * size);
/* Checks the bytes of one section; name NULL: of all. */
PYLLM_API pyllm_status pyllm_checkpoint_file_verify(const pyllm_checkpoint_file * file, const char * name);
/* 16 hexadecimal digits that tell the model's file from others of the same shape: of its size and of samples of its bytes, in milliseconds. */
PYLLM_API pyllm_status pyllm_model_fingerprint(const pyllm_model * model, char * text, size_t capacity, size_t * length);

/* ---------------------------------------------------------------- sampler */

typedef struct pyllm_sampler pyllm_sampler;

typedef struct pyllm_sampler_params {
    uint32_t seed;            /* 0xFFFFFFFF: random */
    float    temperature;     /* <= 0: greedy */
    int32_t  top_k;           /* <= 0: all */
    float    top_p;           /* 1: off */
    float    min_p;           /* 0: off */
    float    typical_p;       /* 1: off */
    float    top_n_sigma;     /* <= 0: off */
    float    repeat_penalty;  /* 1: off */
    float    frequency_penalty;
    float    presence_penalty;
    int32_t  penalty_last_n;
    float    dry_multiplier;  /* 0: off */
    float    dry_base;
    int32_t  dry_allowed_length;
    int32_t  dry_penalty_last_n;
    int32_t  min_keep;        /* tokens that typical_p, top_p and min_p leave at least */
    int32_t  n_logit_bias;
    bool     ignore_eos;
    bool     reserved[3];
    const int32_t * logit_bias_ids;
    const float   * logit_bias_values; /* added to the logits; -inf forbids the token */
    const char * grammar;     /* GBNF; NULL: none */
} pyllm_sampler_params;

/* With a grammar, every draw is from the distribution of what it allows: mask first, then truncation and temperature. */
PYLLM_API pyllm_sampler_params pyllm_sampler_params_default(void);
PYLLM_API pyllm_status pyllm_sampler_create(pyllm_model * model, const pyllm_sampler_params * params, pyllm_sampler ** out);
PYLLM_API void         pyllm_sampler_free(pyllm_sampler * sampler);
/* A second sampler that goes on exactly as this one would. */
PYLLM_API pyllm_status pyllm_sampler_clone(pyllm_sampler * sampler, pyllm_sampler ** out);
/* As it was when it was made; a random seed is drawn again. */
PYLLM_API pyllm_status pyllm_sampler_reset(pyllm_sampler * sampler);
/* Feeds prompt tokens to the penalties (generated: false) or generated ones to penalties and grammar (true). All or nothing. */
PYLLM_API pyllm_status pyllm_sampler_accept(pyllm_sampler * sampler, const int32_t * tokens, int32_t n_tokens, bool generated);
/* Verification: samples at index, index + 1, …, and goes on while the sampled token is the drafted one. Writes 1 to n_draft + 1 tokens; all
 * have been accepted by the sampler. n_draft 0 is plain sampling.
 * q_ids, q_probs NULL: exact match. Each token is drawn from the target's distribution p with one number of the seed's stream, so the text is
 * that of plain sampling with the same seed. Else PYLLM_DRAFT_CANDIDATES of each per drafted token, what it was drawn from: lossless rejection
 * sampling, which accepts with min(1, p/q), draws a rejected one's successor from max(p - q, 0) and the last from p; it is distributed as plain
 * sampling, but is another text. Greedy samplers ignore q.
 * PYLLM_DECODE for a row with NaN or infinity, or of which no token is left; tokens that were found in rows before it are returned first. */
PYLLM_API pyllm_status pyllm_sampler_verify(pyllm_sampler * sampler, pyllm_context * context, int32_t index, const int32_t * draft, int32_t n_draft,
                                            const int32_t * q_ids, const float * q_probs, int32_t * tokens, int32_t * n_tokens);
/* Place in the random streams, what the penalties remember, place in the grammar. Not the settings: they have to be the same (the seed comes
 * with the state), PYLLM_STATE says what differs. data NULL: only the size. */
PYLLM_API pyllm_status pyllm_sampler_get_state(pyllm_sampler * sampler, uint8_t * data, size_t capacity, size_t * size);
/* All or nothing. */
PYLLM_API pyllm_status pyllm_sampler_set_state(pyllm_sampler * sampler, const uint8_t * data, size_t size);

/* Logarithms of probabilities from the raw logits of a batch entry: of a token (-1: of none) and of the n_top likeliest, in order; n_top is at
 * most 128. */
PYLLM_API pyllm_status pyllm_context_get_logprobs(pyllm_context * context, int32_t index, int32_t token, int32_t n_top,
                                                  float * logprob, int32_t * top_ids, float * top_logprobs);

/* Parses GBNF; the message holds line and column. model, which may be NULL, is for grammars that name tokens by their text. */
PYLLM_API pyllm_status pyllm_grammar_check(const pyllm_model * model, const char * gbnf);
/* GBNF for a JSON schema; PYLLM_INVALID_ARGUMENT with the place for one that is none, that nothing can meet, or that a grammar cannot enforce.
 * *length is that of the whole text; at most capacity - 1 bytes and a zero are written. */
PYLLM_API pyllm_status pyllm_grammar_from_json_schema(const char * schema, char * text, size_t capacity, size_t * length);

/* ---------------------------------------------------------------- drafter */

typedef struct pyllm_drafter pyllm_drafter;

/* Entries of a drafted token's distribution; unused ones have token -1 and probability 0. */
enum { PYLLM_DRAFT_CANDIDATES = 10 };

/* Of one link of the chain. */
typedef struct pyllm_drafter_params {
    int32_t  n_max;           /* tokens drafted at most; <= 0: the type's default */
    int32_t  n_min;           /* a shorter draft is dropped */
    float    p_min;           /* a draft ends before a token that is less certain; model types */
    int32_t  ngram_size_n;    /* <= 0: the type's default */
    int32_t  ngram_size_m;
    int32_t  ngram_min_hits;
    int32_t  type_k;          /* of the draft cache, where the drafter has its own */
    int32_t  type_v;
    uint32_t n_ctx;           /* cells of the draft cache over all sequences; 0: as the target. With fewer, older positions are forgotten */
    int32_t  n_threads;       /* 0: as the target */
    uint64_t stash_bytes;     /* rows of the target that may wait for a draft, over all sequences; 0: 64 MiB */
    int32_t  device_sampling; /* where a draft's tokens are looked for: 1 by the draft model's backend, 0 on the host, -1: by the backend of a GPU */
    int32_t  reserved;
} pyllm_drafter_params;

typedef struct pyllm_drafter_info {
    int32_t  n_max;           /* over all links */
    int32_t  n_seq;
    int32_t  n_links;
    bool     needs_rows;      /* a link reads what the target computes: process has to be called after every decode */
    bool     can_shift;
    bool     reserved[2];
} pyllm_drafter_info;

typedef struct pyllm_drafter_link_info {
    char     type[32];
    int32_t  n_max;           /* after the limits of block size and chained heads */
    int32_t  n_ctx;           /* cells of its context, 0: it has none */
    int32_t  n_ubatch;
    int32_t  block_size;      /* of a DFlash drafter; 0 otherwise */
    bool     has_context;
    bool     shares_memory;   /* reads the target's KV cache and has none of its own */
    bool     chained_heads;
    bool     can_shift;
    int32_t  reserved;
    uint64_t n_drafts;        /* with at least one token, over all sequences */
    uint64_t n_drafted;
    uint64_t n_accepted;
    uint64_t n_failures;      /* of one sequence each: it went on without a draft, see pyllm_drafter_why */
    uint64_t n_decodes;       /* of the draft context */
    uint64_t n_inject_decodes; /* those of them that brought rows of the target into the draft memory */
    uint64_t n_injected;      /* rows */
} pyllm_drafter_link_info;

/* One slot's wish: at most n_max tokens after `last`, which stands at position pos and is not in the memory yet. */
typedef struct pyllm_draft_request {
    int32_t  seq;
    int32_t  last;
    int32_t  pos;
    int32_t  n_max;
    float    temperature;     /* <= 0, or no q: the most likely tokens. Else drawn, by seed and position alone */
    int32_t  n_tokens;        /* out */
    uint64_t seed;
    int32_t * tokens;         /* out, room for n_max */
    int32_t * q_ids;          /* out, n_max x PYLLM_DRAFT_CANDIDATES: what each token was drawn from; or NULL */
    float *   q_probs;
    int32_t  link;            /* out: which one drafted, -1: none */
    float    p_min;           /* in [0, 1]: the draft ends before a token that is less certain; below 0: as the link was made */
} pyllm_draft_request;

PYLLM_API pyllm_drafter_params pyllm_drafter_params_default(void);
/* An empty chain. */
PYLLM_API pyllm_status pyllm_drafter_create(pyllm_context * target, pyllm_drafter ** out);
PYLLM_API void         pyllm_drafter_free(pyllm_drafter * drafter);
/* Appends a link: draft-mtp, draft-dflash, draft-simple, ngram-simple, ngram-map-k, ngram-map-k4v or ngram-mod, each once.
 * draft_model NULL: the drafter is inside the target's file (draft-mtp) or needs no model (n-gram). */
PYLLM_API pyllm_status pyllm_drafter_add(pyllm_drafter * drafter, const char * type, pyllm_model * draft_model, const pyllm_drafter_params * params);
PYLLM_API pyllm_status pyllm_drafter_get_info(pyllm_drafter * drafter, pyllm_drafter_info * info);
PYLLM_API pyllm_status pyllm_drafter_get_link(pyllm_drafter * drafter, int32_t index, pyllm_drafter_link_info * info);
/* After each successful decode of the target, prefill too: takes over its hidden rows or layer inputs. */
PYLLM_API pyllm_status pyllm_drafter_process(pyllm_drafter * drafter, const pyllm_batch * batch);
/* With rest, decodes of the target hand out no rows and process() takes over tokens alone: for steps that nothing is drafted in, and none will be soon.
   accept() may be left out of these. A sequence that decodes meanwhile starts over with its next rows. */
PYLLM_API pyllm_status pyllm_drafter_rest(pyllm_drafter * drafter, bool rest);
/* When a sequence starts to generate: the tokens that its target memory holds. */
PYLLM_API pyllm_status pyllm_drafter_begin(pyllm_drafter * drafter, int32_t seq, const int32_t * tokens, int32_t n_tokens);
/* Drafts for all requests in one go; the links are asked in order, each for the sequences that have no draft yet. A failing drafter leaves
 * n_tokens 0 and is counted, never an error of the call. */
PYLLM_API pyllm_status pyllm_drafter_draft(pyllm_drafter * drafter, pyllm_draft_request * requests, int32_t n_requests);
/* After verification: how many drafted tokens were accepted, and the tokens of the last decode that the target's memory keeps (0: 1 + n_accepted). */
PYLLM_API pyllm_status pyllm_drafter_accept(pyllm_drafter * drafter, int32_t seq, int32_t n_accepted, const int32_t * tokens, int32_t n_tokens);
/* Cuts a sequence back to positions [0, end); 0 forgets all of it. */
PYLLM_API pyllm_status pyllm_drafter_truncate(pyllm_drafter * drafter, int32_t seq, int32_t end);
/* After truncate(seq, end): the number of tokens that the target may keep so that drafts are what they would be if nothing had been cut. One less
 * than `end` where a link lacks the hidden row before it: the target computes that token again. */
PYLLM_API pyllm_status pyllm_drafter_reusable(pyllm_drafter * drafter, int32_t seq, int32_t end, int32_t * out);
/* The target discarded n_discard tokens after n_keep and moved the rest down; so does the drafter. */
PYLLM_API pyllm_status pyllm_drafter_shift(pyllm_drafter * drafter, int32_t seq, int32_t n_keep, int32_t n_discard);
/* Sequence `to` holds the first `end` tokens of `from` too, and nothing else. */
PYLLM_API pyllm_status pyllm_drafter_copy(pyllm_drafter * drafter, int32_t from, int32_t to, int32_t end);
/* One sequence of all links as bytes; flags as for pyllm_state_get. A refused state leaves the sequence empty. */
PYLLM_API pyllm_status pyllm_drafter_state_size(pyllm_drafter * drafter, int32_t seq, int32_t flags, size_t * size);
PYLLM_API pyllm_status pyllm_drafter_state_get(pyllm_drafter * drafter, int32_t seq, int32_t flags, uint8_t * data, size_t capacity, size_t * size);
PYLLM_API pyllm_status pyllm_drafter_state_set(pyllm_drafter * drafter, int32_t seq, int32_t flags, const uint8_t * data, size_t size);
/* For tests of what then happens: the next n decodes of draft contexts fail. */
PYLLM_API pyllm_status pyllm_drafter_fail(pyllm_drafter * drafter, int32_t n);
/* Reason of the last failure of a sequence, by link; empty if there was none since it was emptied. */
PYLLM_API pyllm_status pyllm_drafter_why(const pyllm_drafter * drafter, int32_t seq, char * text, size_t capacity, size_t * length);

/* ---------------------------------------------------------------- depth: how many tokens each slot drafts, by what was measured */

typedef struct pyllm_depth pyllm_depth;

enum { PYLLM_DEPTH_MAX = 64 };

enum {
    PYLLM_DEPTH_IDLE         = 0, /* not generating */
    PYLLM_DEPTH_LEARNING     = 1, /* no step, or no draft, was measured yet */
    PYLLM_DEPTH_LIMITED      = 2, /* the request allows no draft */
    PYLLM_DEPTH_OFF          = 3, /* a draft would cost more than it brings */
    PYLLM_DEPTH_DRAFTING     = 4,
    PYLLM_DEPTH_PROBING      = 5, /* a depth that is not in use is measured */
    PYLLM_DEPTH_BASELINE     = 6, /* the step without any draft is measured */
    PYLLM_DEPTH_REASON_COUNT = 7
};

/* One step of the generating slots. Rows of prompts in the same decode are told apart: the time of such a step teaches nothing. */
typedef struct pyllm_depth_step {
    int32_t n;                    /* slots: length of the three arrays */
    const int32_t * seqs;
    const int32_t * drafted;      /* tokens that the drafter gave, 0 to n_max */
    const int32_t * accepted;     /* of these */
    double  seconds_draft;
    double  seconds_decode;       /* everything else that is done once per step: decode, taking over its rows, verification */
    int32_t n_rows;               /* of the generating slots: sum of 1 + drafted */
    int32_t n_catchup;            /* rows of earlier steps that the drafter took over within seconds_draft */
    int32_t n_prompt_rows;
    int32_t reserved;
} pyllm_depth_step;

typedef struct pyllm_depth_slot {
    int32_t depth;                /* of the last choice */
    int32_t reason;
    int32_t n_positions;          /* of acceptance: n_max */
    int32_t reserved;
    double  rate;                 /* tokens per second of this slot expected of the last choice; 0: not known */
    double  rate_off;             /* if no slot drafted */
    float   acceptance[PYLLM_DEPTH_MAX]; /* [k]: chance that the first k + 1 tokens of a draft are accepted */
    char    text[192];            /* the reason with its numbers */
} pyllm_depth_slot;

/* A measured duration: of a decode of n_rows rows, or of drafting depth tokens for n_slots slots. */
typedef struct pyllm_depth_cost {
    int32_t n_rows;               /* 0: drafting */
    int32_t depth;
    int32_t n_slots;
    int32_t n_samples;
    double  seconds;
} pyllm_depth_cost;

typedef struct pyllm_depth_totals {
    uint64_t n_steps;
    uint64_t n_probes;
    double   seconds;             /* recorded */
    double   seconds_probing;     /* of these, lost to probes: longer than the same tokens take without the probe; negative: won */
    double   seconds_catchup;     /* of one row that the drafter takes over after a pause */
} pyllm_depth_totals;

/* How a decode of several sequences is cut into micro-batches; each is a pass over the model's weights. */
enum {
    PYLLM_CUT_ROWS       = 0, /* not at all: a unified cache of attention */
    PYLLM_CUT_EQUAL      = 1, /* as many rows of each sequence in a part */
    PYLLM_CUT_NEIGHBOURS = 2, /* the same, and only sequences that follow each other: caches of their own */
    PYLLM_CUT_COUNT      = 3
};

/* Decides for up to n_seq slots, each drafting up to n_max <= PYLLM_DEPTH_MAX tokens. It has no clock: all times are given. A drafter that rested has to
   read n_listen steps before it is tried again; 0: it never rests. */
PYLLM_API pyllm_status pyllm_depth_create(int32_t n_seq, int32_t n_max, int32_t cut, int32_t n_listen, pyllm_depth ** out);
PYLLM_API void         pyllm_depth_free(pyllm_depth * depth);
/* A step that belongs to no request teaches what steps cost: n_slots drafts of depth tokens, and a decode of n_rows rows in one piece. */
PYLLM_API pyllm_status pyllm_depth_measure(pyllm_depth * depth, int32_t draft_depth, int32_t n_slots, int32_t n_rows, double seconds_draft, double seconds_decode);
/* A slot starts to generate; its first draft has to take over n_catchup rows (0 where the prompt's rows were taken over with the prompt). */
PYLLM_API pyllm_status pyllm_depth_begin(pyllm_depth * depth, int32_t seq, int32_t n_catchup);
PYLLM_API pyllm_status pyllm_depth_end(pyllm_depth * depth, int32_t seq);
/* Depths for one step of n generating slots; limits[i] is the most that slot i may draft, 0: nothing. The same until the next record. */
PYLLM_API pyllm_status pyllm_depth_choose(pyllm_depth * depth, const int32_t * seqs, const int32_t * limits, int32_t n, int32_t * depths);
/* Whether the last choice needs no rows of the target: nothing is drafted, now or soon. skips_prompts: nor those of a prompt, which will not be used either. */
PYLLM_API pyllm_status pyllm_depth_rests(const pyllm_depth * depth, bool * rests, bool * skips_prompts);
/* In place of the record of a step whose choice rests, and of the next choice for the same slots: `rests` is true where that is depth 0 for all again,
   else it has to be asked for. */
PYLLM_API pyllm_status pyllm_depth_rested(pyllm_depth * depth, double seconds, bool * rests);
PYLLM_API pyllm_status pyllm_depth_record(pyllm_depth * depth, const pyllm_depth_step * step);
PYLLM_API pyllm_status pyllm_depth_get_slot(const pyllm_depth * depth, int32_t seq, pyllm_depth_slot * slot);
/* *count is the number there is. */
PYLLM_API pyllm_status pyllm_depth_get_costs(const pyllm_depth * depth, pyllm_depth_cost * costs, size_t capacity, size_t * count);
PYLLM_API pyllm_status pyllm_depth_get_totals(const pyllm_depth * depth, pyllm_depth_totals * totals);

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
    PYLLM_ROUTE_VERIFY    = 4,
    PYLLM_ROUTE_REFERENCE = 5,
    PYLLM_ROUTE_COUNT     = 6
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

/* ---------------------------------------------------------------- attention */

/* An attention node, in the words of a route key; types and mask have the key's codes. n_kv_max: KV rows that one query sees, 0: all. */
typedef struct pyllm_attention_shape {
    int32_t d_k, d_v, n_head, n_head_kv, n_q, n_kv, streams;
    int32_t type_k, type_v;
    int32_t mask, alibi, softcap, sinks, view;
    int32_t n_kv_max;
    int32_t reserved;
} pyllm_attention_shape;

typedef struct pyllm_attention pyllm_attention;

/* Nodes of one shape over random K and V of their own, laid out as in a KV cache, on device `index`: 2 to 1024, as many as make `cold` bytes, so
 * that what one reads has left the caches when it is read again. The mask is causal over the last n_q rows. n_threads: of a CPU, 0 for the
 * default. Lanes 0 to 7 are graphs over the same K and V with results of their own, made when they are first used: one for each thing compared. */
PYLLM_API pyllm_status pyllm_attention_create(int32_t index, const pyllm_attention_shape * shape, uint64_t cold, uint64_t seed, int32_t n_threads, pyllm_attention ** out);
PYLLM_API void         pyllm_attention_free(pyllm_attention * attention);
/* Nodes, bytes of K and V of one of them as stored, and its key; the key's first five axes are 0 on a device that is no CUDA or HIP GPU. */
PYLLM_API pyllm_status pyllm_attention_get(pyllm_attention * attention, int32_t * n_nodes, uint64_t * bytes, pyllm_route_key * key);
/* Computes a lane's graph until it is captured, and then `repeats` times, queued one behind the other: microseconds of wall time of these for one node.
 * PYLLM_UNSUPPORTED: the device declines the node. */
PYLLM_API pyllm_status pyllm_attention_time(pyllm_attention * attention, int32_t lane, int32_t repeats, double * us);
/* Values of node `number`: `what` -3, -2 and -1 are Q, K and V as [streams, heads, rows, d], a lane the first node's result as [streams, rows, heads,
 * d_v], NaN before it ran. *count is how many there are; nothing is written where `capacity` is less. */
PYLLM_API pyllm_status pyllm_attention_read(pyllm_attention * attention, int32_t what, int32_t number, float * values, size_t capacity, size_t * count);
/* What a device reaches: GB/s of a copy of `bytes` (read and written bytes both count), and GFLOP/s of a product of f16 by f32 matrices of `columns`
 * rows and columns. The best of eight. */
PYLLM_API pyllm_status pyllm_device_rates(int32_t index, uint64_t bytes, int32_t columns, int32_t n_threads, double * copied, double * computed);

/* ---------------------------------------------------------------- crash report */

/* From now on a process that dies by an assertion of upstream, an exception that nobody catches, SIGSEGV, SIGBUS, SIGFPE, SIGILL or SIGABRT
 * leaves `pyllm-crash-<pid>-<UTC time>.txt` in `folder`: versions, `about` (what the caller runs: its settings), signal, message, the last
 * batches, attention nodes with their routes, log lines, and a backtrace. It then ends as it would have: the signal goes to the handler of
 * before, or to its default action. A second call changes the folder and the text. Any thread.
 * PYLLM_NOT_FOUND: the folder does not exist or cannot be written. */
PYLLM_API pyllm_status pyllm_crash_report_enable(const char * folder, const char * about);
PYLLM_API void         pyllm_crash_report_disable(void);

#ifdef __cplusplus
}
#endif
#endif /* PYLLM_H */
