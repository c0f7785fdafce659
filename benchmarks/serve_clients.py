"""The clients of `serve_load.py`, for Locust: each asks at random, and knows what must be answered."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from locust import FastHttpUser, constant, events, task

QUESTIONS = json.loads(Path(os.environ["SCEN_QUESTIONS"]).read_text())
wrong = 0


class Client(FastHttpUser):
    """One client, which asks again as soon as it has its answer."""

    wait_time = constant(0)

    @task
    def ask(self) -> None:
        global wrong
        question = random.choice(QUESTIONS)
        body = {"messages": [{"role": "user", "content": question["prompt"]}]}
        with self.client.post("/v1/chat/completions", json=body, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            told = response.json()
            got = {"text": told["choices"][0]["message"]["content"].strip(), "edit": told["scen"]["edit"]}
            if got != {"text": question["text"], "edit": question["edit"]}:
                wrong += 1
                response.failure(f"wrong answer: {got}")


@events.quit.add_listener
def _tell(**_options: object) -> None:
    Path(os.environ["SCEN_WRONG"]).write_text(str(wrong))
