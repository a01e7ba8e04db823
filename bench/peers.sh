#!/usr/bin/env bash
# Builds llama.cpp's own tools, the peers that the benchmarks compare with, from the sources inside
# the pinned llama-cpp-python, so that both sides are the same llama.cpp. Prints the folder they are
# in; does nothing else when they are there already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv/bin/python}
tools=(llama-quantize llama-perplexity llama-imatrix llama-bench llama-cli)
version=$(sed -n 's/^ *"llama-cpp-python==\(.*\)",*$/\1/p' pyproject.toml)
peers=$PWD/build/peers/$version
sources=$peers/llama_cpp_python-$version/vendor/llama.cpp
bin=$peers/llama.cpp/bin

built() {
    local tool
    for tool in "${tools[@]}"; do [ -x "$bin/$tool" ] || return 1; done
}

fetch() {
    local unfinished
    mkdir -p "$peers"
    unfinished=$(mktemp -d "$peers/.fetching-XXXXXX")
    # shellcheck disable=SC2064  # the name of now
    trap "rm -rf '$unfinished'" EXIT
    "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python \
        --dest "$unfinished" "llama-cpp-python==$version"
    tar -xzf "$unfinished"/llama_cpp_python-*.tar.gz -C "$unfinished"
    mv "$unfinished/llama_cpp_python-$version" "$peers/"
}

compile() {
    command -v cmake >/dev/null || { echo "bench/peers.sh needs cmake: install it first"; exit 1; }
    echo "building llama.cpp's tools, several minutes the first time"
    cmake -S "$sources" -B "$peers/llama.cpp" -DCMAKE_BUILD_TYPE=Release \
        -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_APP=OFF
    cmake --build "$peers/llama.cpp" --parallel "${JOBS:-$(getconf _NPROCESSORS_ONLN)}" \
        --target "${tools[@]}"
}

if ! built; then
    [ -d "$sources" ] || fetch
    compile
fi >&2
echo "$bin"
