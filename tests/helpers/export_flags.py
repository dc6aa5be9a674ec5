"""Flags of the programs that exports start, as their documentation lists them."""

FLAGS = {
    # vllm-project/vllm: vllm/engine/arg_utils.py, vllm/entrypoints/openai/cli_args.py, and
    # docs/serving/parallelism_scaling.md, data_parallel_deployment.md
    "vllm serve MODEL": {
        "--pipeline-parallel-size", "--data-parallel-size", "--tensor-parallel-size",
        "--distributed-executor-backend",
        "--nnodes", "--node-rank", "--master-addr", "--master-port", "--headless",
        "--max-num-seqs", "--max-num-batched-tokens", "--max-model-len",
        "--gpu-memory-utilization", "--block-size", "--kv-cache-dtype", "--dtype", "--host",
        "--port",
    },
    # docs.ray.io/en/latest/cluster/cli.html
    "ray start": {"--head", "--port", "--address", "--num-gpus"},
    # vllm-project/router: docs/cli_reference.md, columns of the Python launcher
    "vllm-router": {
        "--worker-urls", "--policy", "--balance-abs-threshold", "--balance-rel-threshold",
        "--host", "--port",
    },
    # docs.vllm.ai/en/latest/cli/bench/serve/
    "vllm bench serve": {
        "--backend", "--model", "--base-url", "--dataset-name", "--random-input-len",
        "--random-output-len", "--ignore-eos", "--request-rate", "--max-concurrency",
        "--num-prompts", "--percentile-metrics", "--metric-percentiles",
    },
    # sgl-project/sglang: docs/advanced_features/server_arguments.md
    "python -m sglang.launch_server": {
        "--model-path", "--pp-size", "--tp-size", "--dp-size",
        "--nnodes", "--node-rank", "--dist-init-addr", "--context-length",
        "--max-running-requests", "--chunked-prefill-size", "--max-prefill-tokens",
        "--enable-mixed-chunk",
        "--mem-fraction-static", "--page-size",
        "--kv-cache-dtype", "--dtype", "--host", "--port",
    },
    # sgl-project/sglang: sgl-model-gateway/bindings/python/src/sglang_router/router_args.py
    "python -m sglang_router.launch_router": {
        "--worker-urls", "--policy", "--balance-abs-threshold", "--balance-rel-threshold",
        "--host", "--port",
    },
    # sgl-project/sglang: docs/developer_guide/bench_serving.md
    "python -m sglang.bench_serving": {
        "--backend", "--model", "--base-url", "--dataset-name", "--tokenize-prompt",
        "--random-input-len", "--random-output-len", "--random-range-ratio", "--request-rate",
        "--max-concurrency", "--num-prompts",
    },
    # ggml-org/llama.cpp: tools/rpc/rpc-server.cpp, target ggml-rpc-server in its CMakeLists.txt
    "ggml-rpc-server": {"--device", "--host", "--port"},
    # ggml-org/llama.cpp: tools/server/README.md
    "llama-server": {
        "-m", "-ngl", "--rpc", "--device", "-ts", "-c", "-b", "-ub", "-np", "-fit", "--host",
        "--port",
    },
    # ggml-org/llama.cpp: common/arg.cpp, LLAMA_EXAMPLE_BENCH; tools/batched-bench
    "llama-batched-bench": {
        "-m", "-ngl", "--rpc", "--device", "-ts", "-c", "-b", "-ub", "-npp", "-ntg", "-npl",
    },
    # nginx.org/en/docs/switches.html
    "nginx": {"-c"},
    # docs.nvidia.com: genai-perf/README.html, "Command Line Options"
    "genai-perf profile": {
        "-m", "--tokenizer", "--endpoint-type", "--streaming", "--url",
        "--synthetic-input-tokens-mean", "--synthetic-input-tokens-stddev",
        "--output-tokens-mean", "--output-tokens-stddev", "--extra-inputs", "--request-rate",
        "--concurrency", "--request-count",
    },
}  # fmt: skip
"""By program; above each is where its documentation stands."""
