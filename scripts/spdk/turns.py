#!/usr/bin/env python3
"""Runs two programs in short alternating turns on one processor, so that other load affects both alike.

    turns.py OUTPUT_A OUTPUT_B COMMAND_A... -- COMMAND_B...

While the one runs the other stands still (SIGSTOP). Turns are alike, and are kept as they are when one has ended: each
has half of the time from its start to its end, and a rate that it tells by the clock is half of what it reached. What they
print goes to the two files; the exit status is that of the first that failed.
"""

import signal
import subprocess
import sys
import time

TURN_SECONDS = 0.05


def main():
    output_a, output_b, *commands = sys.argv[1:]
    between = commands.index("--")
    programs = []
    for command, output in ((commands[:between], output_a), (commands[between + 1 :], output_b)):
        with open(output, "w", encoding="utf-8") as file:
            programs.append(subprocess.Popen(command, stdout=file))
    try:
        take_turns(programs)
    finally:
        for program in programs:
            if program.poll() is None:
                program.kill()
    return next((program.returncode for program in programs if program.returncode), 0)


def take_turns(programs):
    for program in programs:
        program.send_signal(signal.SIGSTOP)
    until = time.monotonic()
    while any(program.poll() is None for program in programs):
        for program in programs:
            # Polled just now, or in the turn before: what has ended is not signalled.
            program.send_signal(signal.SIGCONT)
            until += TURN_SECONDS
            time.sleep(max(0, until - time.monotonic()))
            program.send_signal(signal.SIGSTOP)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
