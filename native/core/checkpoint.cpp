#include "core/error.h"
#include "core/model.h"
#include "state/file.h"
#include "state/fingerprint.h"

#include <cstring>

using namespace pyllm;

struct pyllm_checkpoint_file {
    state::reader reader;
};

static_assert(sizeof(pyllm_checkpoint_section::name) > state::NAME_SIZE, "the name of a section and a zero");

static const state::reader & reader_of(const pyllm_checkpoint_file * file) { return not_null(file, "file")->reader; }

template <typename List> static const auto & at(const List & list, size_t index, const char * what) {
    require(index < list.size(), PYLLM_INVALID_ARGUMENT, format("%s %zu is not among the %zu of the file", what, index, list.size()));
    return list[index];
}

template <typename T> static T element(const T * list, size_t index, const char * what) { return not_null(list, what)[index]; }

extern "C" {

pyllm_status pyllm_checkpoint_file_write(const char * path, const char * const * keys, const char * const * values, size_t n_facts, const char * const * names,
                                         const uint8_t * const * datas, const size_t * sizes, size_t n_sections) {
    return guard([&] {
        state::facts                header;
        std::vector<state::section> sections;
        for (size_t i = 0; i < n_facts; ++i) {
            header.emplace_back(not_null(element(keys, i, "keys"), "a key"), not_null(element(values, i, "values"), "a value"));
        }
        for (size_t i = 0; i < n_sections; ++i) {
            sections.push_back({ not_null(element(names, i, "names"), "a name"), element(datas, i, "datas"), element(sizes, i, "sizes") });
        }
        state::write(not_null(path, "path"), header, sections);
    });
}

pyllm_status pyllm_checkpoint_file_open(const char * path, pyllm_checkpoint_file ** out) {
    return guard([&] {
        not_null(out, "out");
        *out = new pyllm_checkpoint_file{ state::reader(not_null(path, "path")) };
    });
}

void pyllm_checkpoint_file_close(pyllm_checkpoint_file * file) { delete file; }

pyllm_status pyllm_checkpoint_file_get_info(const pyllm_checkpoint_file * file, pyllm_checkpoint_info * info) {
    return guard([&] {
        const state::reader & reader = reader_of(file);
        *not_null(info, "info") = {};
        info->version    = reader.version();
        info->size       = reader.size();
        info->n_facts    = reader.header().size();
        info->n_sections = reader.sections().size();
    });
}

pyllm_status pyllm_checkpoint_file_get_fact(const pyllm_checkpoint_file * file, size_t index, const char ** key, const char ** value) {
    return guard([&] {
        const auto & [name, text] = at(reader_of(file).header(), index, "fact");
        *not_null(key, "key")     = name.c_str();
        *not_null(value, "value") = text.c_str();
    });
}

pyllm_status pyllm_checkpoint_file_get_section(const pyllm_checkpoint_file * file, size_t index, pyllm_checkpoint_section * section) {
    return guard([&] {
        const state::entry & entry = at(reader_of(file).sections(), index, "section");
        *not_null(section, "section") = {};
        std::memcpy(section->name, entry.name.data(), entry.name.size());
        section->offset   = entry.offset;
        section->size     = entry.size;
        section->checksum = entry.checksum;
    });
}

pyllm_status pyllm_checkpoint_file_read(const pyllm_checkpoint_file * file, const char * name, uint8_t * data, size_t capacity, size_t * size) {
    return guard([&] {
        const state::reader & reader = reader_of(file);
        const state::entry &  entry  = reader.find(not_null(name, "name"));
        *not_null(size, "size") = (size_t) entry.size;
        require(entry.size <= capacity, PYLLM_LIMIT, format("section `%s` has %llu bytes, the buffer %zu", name, (unsigned long long) entry.size, capacity));
        reader.read(entry, entry.size > 0 ? not_null(data, "data") : data);
    });
}

pyllm_status pyllm_checkpoint_file_verify(const pyllm_checkpoint_file * file, const char * name) {
    return guard([&] {
        const state::reader & reader = reader_of(file);
        if (name == nullptr) {
            reader.verify();
        } else {
            reader.verify(reader.find(name));
        }
    });
}

pyllm_status pyllm_model_fingerprint(const pyllm_model * model, char * text, size_t capacity, size_t * length) {
    return guard([&] { copy_text(state::fingerprint(not_null(model, "model")->path), text, capacity, length); });
}

} // extern "C"
