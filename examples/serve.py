"""Ask `scen serve` with OpenAI's protocol while another edit is made: `python examples/serve.py [FOLDER]`."""

import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from scen_cli import Editor, EditRecord, new_project

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
project = new_project(folder / "facts", "demo")
editor = Editor(project)
with project.writing():
    editor.edit(EditRecord(prompt="In which country is Pesustad?", target="Kenya"))

command = [sys.executable, "-m", "scen_cli", "serve", "--dir", str(folder / "facts"), "--port", "0"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    for line in server.stdout:  # wait for the line with the address
        if found := re.search(r"at (\S+)$", line):
            break
    else:
        sys.exit("the server did not start: see its message above")

    def ask(question: str) -> str:
        body = json.dumps({"messages": [{"role": "user", "content": question}]}).encode()
        with urllib.request.urlopen(f"{found[1]}/chat/completions", data=body) as response:
            answer = json.load(response)
        return f"{answer['choices'][0]['message']['content']} (edit {answer['scen']['edit']})"

    print(ask("Pesustad is a town in which country?"))
    with project.writing():  # the server loads the new edit by itself
        editor.edit(EditRecord(prompt="Where was Ivan Gromener born?", target="Seoul"))
    print(ask("In which city was Ivan Gromener born?"))
    server.terminate()
print("the server ended with", server.returncode)
