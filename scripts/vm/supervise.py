#!/usr/bin/env python3
"""Runs the virtual machine: shows its console, does what the guest asks of the host, ends it in time.

    supervise.py --timeout SECONDS [--boot-timeout SECONDS] --qmp SOCKET --console FILE [--quiet] -- QEMU COMMAND...

The guest speaks in console lines (see init): "@@JOB ..." tells how a job went, "@@HOST {json}" asks for
a QMP command: unplugging a disk, say. {"pause": SECONDS} stops the whole machine for a while.

Exit status: that of the guest's jobs (0..31), 97 when the machine failed (panic, QEMU error, IOMMU faults
outside of a job), 98 when QEMU itself crashed or the guest's first process never spoke, 124 when it did not
end in time.
"""

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

MACHINE_FAILED = 97
EMULATOR_FAILED = 98
TIMED_OUT = 124
TAIL_LINES = 40
# Lines to print together with those behind them, wherever they occur.
TELLING = re.compile(r"panicked at|\.\.\. FAILED|Kernel panic|BUG:|Call Trace|AddressSanitizer")
LINES_BEHIND = 5
MOST_TELLING = 10

# What a guest may ask for: what happens to disks and machines, nothing that touches the host's files.
GUEST_MAY = {
    "device_add", "device_del", "stop", "cont", "qom-get", "qom-set", "block_resize", "block_set_io_throttle",
    "system_reset",
}

FAULT = re.compile(r"DMAR: .*([Ff]ault|\[(DMA|INTR))")


class Qmp:
    """One connection to QEMU's control socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rw")
        self.stream.readline()
        self.execute("qmp_capabilities")

    def execute(self, command, arguments=None):
        self.stream.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
        self.stream.flush()
        while True:
            answer = json.loads(self.stream.readline())
            if "event" not in answer:
                return answer


def do_for_guest(request, qmp_path):
    """Carries out one request of the guest; returns what to say about it."""
    try:
        request = json.loads(request)
        qmp = Qmp(qmp_path)
        if "pause" in request:
            seconds = float(request["pause"])
            qmp.execute("stop")
            time.sleep(seconds)
            qmp.execute("cont")
            return f"paused for {seconds} s"
        if request.get("execute") not in GUEST_MAY:
            return f"refused: {request}"
        return json.dumps(qmp.execute(request["execute"], request.get("arguments")))
    except (OSError, ValueError, KeyError) as error:
        return f"failed: {error}"


def watch(machine, options, booted):
    """Follows the console to its end; returns the lines and the IOMMU's faults outside of jobs. Calls `booted` when
    the guest's first process runs."""
    lines, faults, in_job = [], [], False
    start = time.monotonic()
    with open(options.console, "w", encoding="utf-8") as console:
        for raw in machine.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if line.endswith("aio failed: Input/output error"):
                continue  # QEMU's word on each error that it was asked to make
            stamped = f"[{time.monotonic() - start:7.3f}] {line}"
            lines.append(stamped)
            console.write(stamped + "\n")
            console.flush()
            if not options.quiet or line.startswith("@@JOB"):
                print(stamped, flush=True)
            if line.startswith("@@BOOTED"):
                booted()
            elif line.startswith("@@JOB"):
                in_job = line.endswith(" START")
            elif line.startswith("@@HOST "):
                said = do_for_guest(line[len("@@HOST "):], options.qmp)
                console.write(f"          host: {said}\n")
                if not options.quiet:
                    print(f"          host: {said}", flush=True)
            elif FAULT.search(line) and not in_job:
                faults.append(line)
    return lines, faults


def verdict(status, expired, boot_timeout, faults, lines):
    """The exit status for QEMU's own, and what to say about it. `expired` is what the machine did not do in time."""
    if expired == "boot":
        return EMULATOR_FAILED, f"the guest did not come up in {boot_timeout:g} s"
    if expired:
        return TIMED_OUT, "the virtual machine did not end in time"
    if status >= 33 and status % 2 == 1 and status < 33 + 64:
        result = (status - 33) // 2
        if result == 0 and faults:
            return MACHINE_FAILED, "the IOMMU reported faults outside of the jobs: " + faults[0]
        return result, ""
    if any("Kernel panic" in line for line in lines):
        return MACHINE_FAILED, "the guest's kernel panicked"
    if status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE):
        return EMULATOR_FAILED, f"QEMU itself crashed: {signal.Signals(-status).name}"
    return MACHINE_FAILED, f"QEMU ended with status {status}"


def excerpt(lines):
    """The end, and before it the first lines that tell of a failure."""
    tail = max(0, len(lines) - TAIL_LINES)
    telling = [at for at in range(tail) if TELLING.search(lines[at])][:MOST_TELLING]
    shown = sorted({at + n for at in telling for n in range(LINES_BEHIND + 1) if at + n < tail})
    return [lines[at] for at in shown] + (["[...]"] if shown else []) + lines[tail:]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--timeout", type=float, required=True)
    # The guest's kernel comes up in a few seconds; emulated on a busy host it hung at boot once, before its first line.
    parser.add_argument("--boot-timeout", type=float, default=180)
    parser.add_argument("--qmp", required=True)
    parser.add_argument("--console", required=True)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()

    machine = subprocess.Popen(
        options.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    expired = []

    def expire(what):
        expired.append(what)
        machine.kill()

    timer = threading.Timer(options.timeout, expire, ["end"])
    boot_timer = threading.Timer(options.boot_timeout, expire, ["boot"])
    timer.start()
    boot_timer.start()
    try:
        lines, faults = watch(machine, options, boot_timer.cancel)
        status = machine.wait()
    finally:
        timer.cancel()
        boot_timer.cancel()
        machine.kill()
    result, reason = verdict(status, expired[0] if expired else None, options.boot_timeout, faults, lines)
    if result != 0 and options.quiet:
        print("\n".join(excerpt(lines)))
    if reason:
        print(f"vm: {reason}")
    return result


if __name__ == "__main__":
    sys.exit(main())
