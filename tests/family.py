"""A process that has the command line loaded and forks one process per command: a command costs its work, not its imports.

family = Family(); family.run("search", index, "words")      -> Ended(status, out, err, seconds)
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Ended(NamedTuple):
    status: int  # below 0: the signal that ended it
    out: str
    err: str
    seconds: float
    alive: bool  # whether it still ran when the signal was sent


class Family:
    def __init__(self):
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TQDM_MININTERVAL": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": paths,
        }
        self.host = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        *words,
        after=None,
        grown=None,
        send=signal.SIGKILL,
        largest_file=None,
        encoding="utf-8",
        closed=(),
        unread=False,
        environment=(),
    ) -> Ended:
        """Run a command to its end; `after` so many seconds it gets a signal, counted from when a file has `grown` to (path, bytes).

        largest_file: bytes that a file may have (a disk that is full). encoding: of its stdout. closed: streams, "stdout" or "stderr",
        that it has not got. unread: its stdout is a pipe that nobody reads. environment: {name: value} beside what there is.
        """
        with tempfile.TemporaryDirectory() as folder:
            asked = dict(
                words=list(map(str, words)),
                folder=folder,
                after=after,
                grown=grown and [str(grown[0]), grown[1]],
                send=int(send),
                largest_file=largest_file,
                encoding=encoding,
                closed=list(closed),
                unread=unread,
                environment=dict(environment),
            )
            self.host.stdin.write(json.dumps(asked) + "\n")
            self.host.stdin.flush()
            answer = json.loads(self.host.stdout.readline())
            return Ended(
                answer["status"],
                *(
                    Path(folder, name).read_text(encoding)
                    for name, encoding in (("out", encoding), ("err", "utf-8"))
                ),
                answer["seconds"],
                answer["alive"],
            )

    def close(self):
        self.host.stdin.close()
        self.host.wait(30)


def _serve():
    import torch

    import contaccum_lite.scale.index  # noqa: F401
    from contaccum_lite.cli import main
    from transformers.utils import logging  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked, began = json.loads(line), time.monotonic()
        child = os.fork()
        if not child:
            _become(main, asked)
        status, alive, grown = None, False, asked["grown"]
        while status is None:
            ended, code = os.waitpid(child, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(code)
            elif grown:
                if os.path.exists(grown[0]) and os.path.getsize(grown[0]) >= grown[1]:
                    grown, began = None, time.monotonic()
                time.sleep(0.001)
            elif (
                asked["after"] is not None
                and time.monotonic() - began >= asked["after"]
                and not alive
            ):
                os.kill(child, asked["send"])
                alive = True
            else:
                time.sleep(0.001)
        print(
            json.dumps(dict(status=status, seconds=time.monotonic() - began, alive=alive)),
            flush=True,
        )


def _become(main, asked):
    """In the child: the command, and nothing of the parent's after it."""
    status = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(os.path.join(asked["folder"], name), os.O_WRONLY | os.O_CREAT), number)
        if asked["unread"]:
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
        sys.stdout = open(1, "w", closefd=False, encoding=asked["encoding"])
        sys.stderr = open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace")
        for name in asked["closed"]:
            os.close({"stdout": 1, "stderr": 2}[name])
            setattr(sys, name, None)
        os.environ.update(asked["environment"])
        os.fsync = lambda handle: (
            None
        )  # for a power cut, which is not tried here; a shared disk can take seconds for it
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # ignored where the tests were started in the background
        if asked["largest_file"]:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"],) * 2)
        status = main(asked["words"])
    except SystemExit as end:
        status = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
