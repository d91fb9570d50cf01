"""A server whose time is known: it does the steps it is told, one after the other.

Steps come from the query string (`?steps=sleep:20,cpu:5`) or, without one, from DWELL_STEPS:

    cpu:MS      compute, MS of this thread's processor time
    sleep:MS    sleep
    lock:MS     wait for a lock that another thread holds for MS
    db:MS       connect to Postgres and let it sleep for MS
    send:BYTES  send that many bytes of the response now
    read        read the request's body

Every response ends with a line of JSON that tells what each step took, in milliseconds, by the
server's own clock: tests compare it with what was measured from outside.
"""

import json
import os
import threading
import time
from urllib.parse import parse_qs


def burn(ms):
    """Computes until this thread has used `ms` of processor time."""
    end = time.thread_time_ns() + int(ms * 1e6)
    while time.thread_time_ns() < end:
        pass


class Holder:
    """A thread that holds a lock for as long as it is asked to."""

    def __init__(self):
        self.lock = threading.Lock()
        self.asked = threading.Semaphore(0)
        self.taken = threading.Semaphore(0)
        self.hold_s = 0.0
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            self.asked.acquire()
            with self.lock:
                self.taken.release()
                time.sleep(self.hold_s)

    def wait(self, ms):
        """Waits for the lock, which the thread takes first."""
        self.hold_s = ms / 1e3
        self.asked.release()
        self.taken.acquire()
        with self.lock:
            pass


# Made at the first use: gunicorn forks after it has imported this module.
holder = None


def wait_for_lock(ms):
    """Waits for a lock held elsewhere in this process."""
    global holder
    if holder is None:
        holder = Holder()
    holder.wait(ms)


def ask_database(ms):
    """One connection, one statement that takes `ms`."""
    import psycopg2

    of = lambda name: os.environ[f"DWELL_DB_{name}"]
    connection = psycopg2.connect(
        host=of("HOST"), port=of("PORT"), dbname=of("NAME"), user=of("USER"), password=of("PASSWORD")
    )
    try:
        connection.cursor().execute("SELECT pg_sleep(%s)", (ms / 1e3,))
    finally:
        connection.close()


TIMED = {
    "cpu": burn,
    "sleep": lambda ms: time.sleep(ms / 1e3),
    "lock": wait_for_lock,
    "db": ask_database,
}


def parse(text):
    """`name:number,...` as pairs. Raises ValueError for an unknown step."""
    steps = []
    for item in filter(None, text.split(",")):
        name, _, number = item.partition(":")
        if name not in TIMED and name not in ("send", "read"):
            raise ValueError(f"unknown step {name!r}")
        steps.append((name, float(number or 0)))
    return steps


def run(steps, body):
    """Does the steps; yields the parts of the response."""
    took = []
    for name, number in steps:
        start = time.monotonic_ns()
        if name == "send":
            yield b"." * int(number)
        elif name == "read":
            body.read()
        else:
            TIMED[name](number)
        took.append([name, (time.monotonic_ns() - start) / 1e6])
    yield b"\n" + json.dumps({"took_ms": took}).encode() + b"\n"


def application(environ, start_response):
    """WSGI entry point."""
    query = parse_qs(environ.get("QUERY_STRING", ""))
    try:
        steps = parse(query["steps"][0] if "steps" in query else os.environ.get("DWELL_STEPS", ""))
    except ValueError as error:
        start_response("400 Bad Request", [("Content-Type", "text/plain")])
        return [f"{error}\n".encode()]
    parts = run(steps, environ["wsgi.input"])
    headers = [("Content-Type", "text/plain")]
    if not any(name == "send" for name, _ in steps):
        whole = b"".join(parts)
        parts = [whole]
        headers.append(("Content-Length", str(len(whole))))
    start_response("200 OK", headers)
    return parts
