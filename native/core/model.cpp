#include "core/model.h"

#include "core/error.h"
#include "core/library.h"

#include "ggml-backend.h"
#include "gguf.h"
#include "llama-ext.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sys/stat.h>
#include <vector>

namespace pyllm {

std::string model_meta(const llama_model * model, const std::string & key) {
    const int32_t n = llama_model_meta_val_str(model, key.c_str(), nullptr, 0);
    if (n <= 0) {
        return "";
    }
    std::vector<char> text((size_t) n + 1);
    llama_model_meta_val_str(model, key.c_str(), text.data(), text.size());
    return std::string(text.data(), (size_t) n);
}

std::string model_architecture(const llama_model * model) { return model_meta(model, "general.architecture"); }

int32_t model_block_size(const llama_model * model) {
    if (model_architecture(model) != "dflash") {
        return 0;
    }
    const std::string text = model_meta(model, "dflash.block_size");
    return text.empty() ? 16 : std::atoi(text.c_str()); // upstream's own default
}

namespace {

// What upstream would only discover with a null pointer, or by reading past a mapping.
void check_file(const std::string & path) {
    struct stat st;
    if (stat(path.c_str(), &st) != 0) {
        throw failure(errno == ENOENT || errno == ENOTDIR ? PYLLM_NOT_FOUND : PYLLM_MODEL_FORMAT,
                      format("model file `%s`: %s", path.c_str(), std::strerror(errno)), "give the path of a GGUF file");
    }
    require(S_ISREG(st.st_mode), PYLLM_MODEL_FORMAT, format("`%s` is not a regular file", path.c_str()), "give the path of a GGUF file");
    std::ifstream in(path, std::ios::binary);
    require(in.good(), PYLLM_NOT_FOUND, format("model file `%s` cannot be opened: %s", path.c_str(), std::strerror(errno)),
            "check its permissions");
    char magic[4] = {};
    in.read(magic, sizeof(magic));
    const bool whole = in.gcount() == (std::streamsize) sizeof(magic);
    require(whole && std::memcmp(magic, "GGUF", 4) == 0, PYLLM_MODEL_FORMAT,
            format("`%s` is not a GGUF file: it %s", path.c_str(), whole ? "does not start with `GGUF`" : "is shorter than 4 bytes"),
            "convert the model with llama.cpp's convert_hf_to_gguf.py");
    in.close();

    gguf_init_params params = { /*.no_alloc =*/ true, /*.ctx =*/ nullptr };
    log_errors_clear();
    std::unique_ptr<gguf_context, decltype(&gguf_free)> gguf(gguf_init_from_file(path.c_str(), params), gguf_free);
    require(gguf != nullptr, PYLLM_MODEL_FORMAT, format("`%s` has a damaged GGUF header: %s", path.c_str(), log_errors().c_str()),
            "the file is probably truncated; download or write it again");
    uint64_t end = gguf_get_data_offset(gguf.get());
    const uint64_t data = end;
    std::string last;
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); ++i) {
        const uint64_t stop = data + gguf_get_tensor_offset(gguf.get(), i) + gguf_get_tensor_size(gguf.get(), i);
        if (stop > end) {
            end  = stop;
            last = gguf_get_tensor_name(gguf.get(), i);
        }
    }
    require(end <= (uint64_t) st.st_size, PYLLM_MODEL_FORMAT,
            format("`%s` is truncated: tensor `%s` ends at byte %llu, the file has %llu", path.c_str(), last.c_str(),
                   (unsigned long long) end, (unsigned long long) st.st_size),
            "download or write the file again");
}

std::vector<ggml_backend_dev_t> find_devices(const char * names) {
    std::vector<ggml_backend_dev_t> devices;
    if (names == nullptr || *names == '\0') {
        return devices;
    }
    std::string known;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        known += (known.empty() ? "" : ", ") + std::string(ggml_backend_dev_name(ggml_backend_dev_get(i)));
    }
    std::string rest = names;
    while (!rest.empty()) {
        const size_t comma = rest.find(',');
        const std::string name = rest.substr(0, comma);
        rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
        ggml_backend_dev_t dev = ggml_backend_dev_by_name(name.c_str());
        require(dev != nullptr, PYLLM_INVALID_ARGUMENT, format("no device is named `%s`", name.c_str()), "devices here: " + known);
        devices.push_back(dev);
    }
    devices.push_back(nullptr);
    return devices;
}

} // namespace
} // namespace pyllm

using namespace pyllm;

extern "C" {

pyllm_model_params pyllm_model_params_default(void) {
    pyllm_model_params params = {};
    params.n_gpu_layers = -1;
    params.split_mode   = LLAMA_SPLIT_MODE_LAYER;
    params.use_mmap     = true;
    params.load_mtp     = true;
    return params;
}

pyllm_status pyllm_model_load(const char * path, const pyllm_model_params * params, pyllm_model ** out) {
    return guard([&] {
        not_null(path, "path");
        not_null(params, "params");
        *not_null(out, "out") = nullptr;
        require(params->split_mode >= LLAMA_SPLIT_MODE_NONE && params->split_mode <= LLAMA_SPLIT_MODE_TENSOR, PYLLM_INVALID_ARGUMENT,
                format("split_mode %d is not 0 (none), 1 (layer), 2 (row) or 3 (tensor)", params->split_mode));
        library_init();
        const abort_is_exception caught;
        check_file(path);

        auto devices = find_devices(params->devices);
        llama_model_params mparams = llama_model_default_params();
        mparams.devices       = devices.empty() ? nullptr : devices.data();
        mparams.n_gpu_layers  = params->n_gpu_layers;
        mparams.split_mode    = (llama_split_mode) params->split_mode;
        mparams.main_gpu      = params->main_gpu;
        mparams.load_mode     = params->use_mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
        mparams.check_tensors = params->check_tensors;
        mparams.vocab_only    = params->vocab_only;
        mparams.load_mtp      = params->load_mtp;
        log_errors_clear();
        std::shared_ptr<llama_model> model;
        std::string why;
        try {
            model.reset(llama_model_load_from_file(path, mparams), [](llama_model * m) {
                if (m != nullptr) {
                    llama_model_free(m);
                }
            });
        } catch (const std::exception & e) {
            why = e.what();
        }
        if (model == nullptr) {
            why = why.empty() ? log_errors() : why;
            const bool memory = why.find("alloc") != std::string::npos;
            throw failure(memory ? PYLLM_OUT_OF_MEMORY : PYLLM_MODEL_FORMAT, format("`%s` could not be loaded: %s", path, why.c_str()),
                          memory ? "load fewer layers on the device (n_gpu_layers) or a smaller quantisation"
                                 : "check that this build knows the architecture and that the file is complete");
        }
        const bool has_mtp = params->load_mtp && llama_model_n_layer_nextn(model.get()) > 0;
        *out = new pyllm_model{ std::move(model), path, has_mtp, params->vocab_only };
    });
}

void pyllm_model_free(pyllm_model * model) { delete model; }

pyllm_status pyllm_model_get_info(const pyllm_model * handle, pyllm_model_info * info) {
    return guard([&] {
        const llama_model * model = not_null(handle, "model")->model.get();
        *not_null(info, "info") = {};
        copy_text(model_architecture(model), info->architecture, sizeof(info->architecture), nullptr);
        llama_model_desc(model, info->description, sizeof(info->description));
        info->n_vocab         = handle->n_vocab();
        if (handle->vocab_only) {
            return; // upstream asserts on hyperparameters that were not read
        }
        info->n_embd          = llama_model_n_embd(model);
        info->n_embd_out      = llama_model_n_embd_out(model);
        info->n_layer         = llama_model_n_layer(model);
        info->n_layer_nextn   = llama_model_n_layer_nextn(model);
        info->n_head          = llama_model_n_head(model);
        info->n_head_kv       = llama_model_n_head_kv(model);
        info->n_ctx_train     = llama_model_n_ctx_train(model);
        info->n_swa           = llama_model_n_swa(model);
        info->n_target_layers = (int32_t) llama_model_target_layer_ids_n(model);
        info->block_size      = model_block_size(model);
        info->recurrent       = llama_model_is_recurrent(model);
        info->hybrid          = llama_model_is_hybrid(model);
        info->has_encoder     = llama_model_has_encoder(model);
        info->has_decoder     = llama_model_has_decoder(model);
        info->n_params        = llama_model_n_params(model);
        info->size            = llama_model_size(model);
    });
}

pyllm_status pyllm_model_get_vocab(const pyllm_model * handle, pyllm_vocab_info * info) {
    return guard([&] {
        const llama_vocab * vocab = not_null(handle, "model")->vocab();
        *not_null(info, "info") = {};
        info->bos     = llama_vocab_bos(vocab);
        info->eos     = llama_vocab_eos(vocab);
        info->eot     = llama_vocab_eot(vocab);
        info->nl      = llama_vocab_nl(vocab);
        info->pad     = llama_vocab_pad(vocab);
        info->mask    = llama_vocab_mask(vocab);
        info->add_bos = llama_vocab_get_add_bos(vocab);
        info->add_eos = llama_vocab_get_add_eos(vocab);
    });
}

pyllm_status pyllm_model_get_meta(const pyllm_model * handle, const char * key, char * text, size_t capacity, size_t * length) {
    return guard([&] {
        const llama_model * model = not_null(handle, "model")->model.get();
        not_null(key, "key");
        require(llama_model_meta_val_str(model, key, nullptr, 0) >= 0, PYLLM_NOT_FOUND, format("the model has no metadata key `%s`", key));
        copy_text(model_meta(model, key), text, capacity, length);
    });
}

pyllm_status pyllm_model_get_chat_template(const pyllm_model * handle, const char * name, char * text, size_t capacity, size_t * length) {
    return guard([&] {
        const llama_model * model = not_null(handle, "model")->model.get();
        const char * tmpl = llama_model_chat_template(model, name != nullptr && *name != '\0' ? name : nullptr);
        require(tmpl != nullptr, PYLLM_NOT_FOUND, "the model carries no chat template", "use generate() with a whole prompt, or give a template");
        copy_text(tmpl, text, capacity, length);
    });
}

pyllm_status pyllm_model_tokenize(const pyllm_model * handle, const char * text, size_t length, bool add_special, bool parse_special,
                                  int32_t * tokens, size_t capacity, size_t * n_tokens) {
    return guard([&] {
        const llama_vocab * vocab = not_null(handle, "model")->vocab();
        not_null(text, "text");
        not_null(n_tokens, "n_tokens");
        require(length <= (size_t) INT32_MAX && capacity <= (size_t) INT32_MAX, PYLLM_LIMIT, format("text of %zu bytes is longer than 2^31 - 1", length));
        const int32_t n = llama_tokenize(vocab, text, (int32_t) length, tokens, (int32_t) capacity, add_special, parse_special);
        require(n != INT32_MIN, PYLLM_LIMIT, "the text has more than 2^31 - 1 tokens");
        *n_tokens = (size_t) (n < 0 ? -n : n);
        require(n >= 0, PYLLM_LIMIT, format("the text has %d tokens, the buffer holds %zu", -n, capacity));
    });
}

pyllm_status pyllm_model_token_to_piece(const pyllm_model * handle, int32_t token, bool special, char * text, size_t capacity, size_t * length) {
    return guard([&] {
        const llama_vocab * vocab = not_null(handle, "model")->vocab();
        require(token >= 0 && token < handle->n_vocab(), PYLLM_INVALID_ARGUMENT, format("token %d is not in [0, %d)", token, handle->n_vocab()));
        char small[64];
        int32_t n = llama_token_to_piece(vocab, token, small, sizeof(small), 0, special);
        std::string piece;
        if (n >= 0) {
            piece.assign(small, (size_t) n);
        } else {
            piece.resize((size_t) -n);
            n = llama_token_to_piece(vocab, token, &piece[0], (int32_t) piece.size(), 0, special);
            piece.resize((size_t) (n < 0 ? 0 : n));
        }
        copy_text(piece, text, capacity, length);
    });
}

pyllm_status pyllm_model_token_is_eog(const pyllm_model * handle, int32_t token, bool * is_eog) {
    return guard([&] {
        const llama_vocab * vocab = not_null(handle, "model")->vocab();
        require(token >= 0 && token < handle->n_vocab(), PYLLM_INVALID_ARGUMENT, format("token %d is not in [0, %d)", token, handle->n_vocab()));
        *not_null(is_eog, "is_eog") = llama_vocab_is_eog(vocab, token);
    });
}

} // extern "C"
