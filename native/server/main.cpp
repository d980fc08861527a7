// pyllm-server: upstream's server on the patched core.

#include <cstdio>
#include <cstring>

int llama_server(int argc, char ** argv);

int main(int argc, char ** argv) {
    // `pyllm serve` and the package ask this before they start a binary: both have to come from one build.
    if (argc == 2 && std::strcmp(argv[1], "--pyllm-version") == 0) {
        std::printf("pyllm-server %s (llama.cpp %s)\n", PYLLM_VERSION, PYLLM_UPSTREAM_COMMIT);
        return 0;
    }
    return llama_server(argc, argv);
}
