"""The official openai client in front of `steer-llm serve`: only its base URL differs.

steer-llm serve --simulated &
python examples/service_client.py http://127.0.0.1:8788
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam


def main(service: str) -> None:
    client = OpenAI(base_url=f"{service}/v1", api_key=os.environ.get("STEER_KEY", "none is asked for on loopback"))
    model = client.models.retrieve("recorded:demo")
    question = (model.model_extra or {})["question"]
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]

    answer = client.chat.completions.create(model=model.id, messages=messages)
    print("whole:", answer.choices[0].message.content)

    print("streamed: ", end="")
    for chunk in client.chat.completions.create(model=model.id, messages=messages, stream=True):
        print((chunk.choices[0].delta.content or "") if chunk.choices else "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8788")
