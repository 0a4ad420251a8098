"""Open a folder for an NPU in onnxruntime-genai and continue prompts greedily. Argument: a question as JSON.

``plugin``: a provider's name and library to register before.
"""

import json
import sys

import onnxruntime_genai as og

question = json.loads(sys.argv[1])
if question.get("plugin"):
    og.register_execution_provider_library(*question["plugin"])
model = og.Model(question["folder"])


def answer(prompt: list[int]) -> list[int]:
    generator = og.Generator(model, og.GeneratorParams(model))
    generator.append_tokens(prompt)
    made: list[int] = []
    while len(made) < question["tokens"] and not generator.is_done():
        generator.generate_next_token()
        made.append(int(generator.get_next_tokens()[0]))
    return made


text = [int(t) for t in og.Tokenizer(model).encode(question["text"])]
json.dump({"ids": [answer(prompt) for prompt in question["prompts"]], "text": text}, sys.stdout)
