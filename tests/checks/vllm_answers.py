"""Greedy answers by vLLM as JSON on stdout: token ids of every prompt, round by round.

    python vllm_answers.py REQUEST.json

REQUEST.json: "model", a folder; "prompts", token ids of each; "rounds", how often they are all asked; "engine" and
"sampling", arguments of vllm.LLM and vllm.SamplingParams.
"""

import json
import os
import sys
from pathlib import Path

# Before vllm is imported: one process, nothing asked of the network.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def main(request):
    from vllm import LLM, SamplingParams

    engine = LLM(request["model"], trust_remote_code=True, seed=0, **request.get("engine", {}))
    options = request.get("sampling", {})
    if "logit_bias" in options:  # JSON has no numbers as keys
        options["logit_bias"] = {int(token): bias for token, bias in options["logit_bias"].items()}
    sampling = SamplingParams(temperature=0, **options)
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    for _ in range(request.get("rounds", 1)):
        answers = engine.generate(prompts, sampling, use_tqdm=False)
        print(json.dumps([list(answer.outputs[0].token_ids) for answer in answers]), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
