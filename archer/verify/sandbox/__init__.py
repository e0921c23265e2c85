"""Runs programs that nobody trusts: a warm fork server, and a fresh confined process for each run.

    client.py    the trusted side: starts runs, feeds and reads them, keeps their limits
    servers.py   the fork servers as the trusted side holds them: started, told what may be read
    server.py    the fork server: one process that has imported what programs import, and forks
    confine.py   namespaces, mounts, Landlock, capabilities, resource limits
    filter.py    the table of system calls that a program may make, and the BPF made from it
    program.py   what a forked child does with the program: runs it, calls it, tests it
    values.py    the few kinds of values that cross between a program and whoever judges it
    leetcode.py  names that programs and tests written for LeetCode take for granted

The trusted side is client.py and servers.py; the others run inside, on the standard library alone.
docs/sandbox.md tells what is promised and what is not.
"""
