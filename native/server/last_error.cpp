#include "server/last_error.h"

#include "llama.h"

#include <mutex>

namespace pyllm::server {

namespace {

struct memory {
    std::mutex        mutex;
    std::string       line; // the last error
    std::string       part; // of an error that came without its line break so far
    ggml_log_level    level   = GGML_LOG_LEVEL_NONE;
    ggml_log_callback next    = nullptr;
    void *            context = nullptr;
};

memory & errors() {
    static memory & instance = *new memory; // never destroyed: other objects log while they are
    return instance;
}

void listen(ggml_log_level level, const char * text, void * /*user_data*/) {
    memory & m = errors();
    {
        const std::lock_guard<std::mutex> lock(m.mutex);
        if (level != GGML_LOG_LEVEL_CONT) {
            m.level = level;
            m.part.clear();
        }
        if (m.level == GGML_LOG_LEVEL_ERROR) {
            m.part += text;
            if (!m.part.empty() && m.part.back() == '\n') {
                m.part.pop_back();
                if (!m.part.empty()) {
                    m.line = m.part;
                }
                m.part.clear();
            }
        }
    }
    if (m.next != nullptr) {
        m.next(level, text, m.context);
    }
}

} // namespace

void remember_errors() {
    memory & m = errors();

    ggml_log_callback callback = nullptr;
    void *            context  = nullptr;
    llama_log_get(&callback, &context);
    if (callback == listen) {
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(m.mutex);
        m.next    = callback;
        m.context = context;
    }
    llama_log_set(listen, nullptr);
}

void forget_errors() {
    memory & m = errors();
    const std::lock_guard<std::mutex> lock(m.mutex);
    m.line.clear();
}

std::string last_error() {
    memory & m = errors();
    const std::lock_guard<std::mutex> lock(m.mutex);
    return m.line.empty() ? "" : " (" + m.line + ")";
}

} // namespace pyllm::server
