"""Locust clients of `serve_load.py`: each asks random questions and checks the answers."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from locust import FastHttpUser, constant, events, task

QUESTIONS = json.loads(Path(os.environ["SCEN_QUESTIONS"]).read_text())
wrong = 0


class Client(FastHttpUser):
    """One client. It asks the next question as soon as it has an answer."""

    wait_time = constant(0)

    @task
    def ask(self) -> None:
        global wrong
        question = random.choice(QUESTIONS)
        request = {"messages": [{"role": "user", "content": question["prompt"]}]}
        with self.client.post("/v1/chat/completions", json=request, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            body = response.json()
            answer = {"text": body["choices"][0]["message"]["content"].strip(), "edit": body["scen"]["edit"]}
            if answer != {"text": question["text"], "edit": question["edit"]}:
                wrong += 1
                response.failure(f"wrong answer: {answer}")


@events.quit.add_listener
def _write_wrong_answers(**_options: object) -> None:
    Path(os.environ["SCEN_WRONG"]).write_text(str(wrong))
