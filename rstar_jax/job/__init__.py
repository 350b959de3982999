"""A job on one or several machines: its processes, its workdir, its store, how it ends.

In come the environment of a launcher (`hosts`), a folder or the address of a store (`bucket`), and
signals (`interrupts`). Out come one writer for each workdir (`ledger.lock`, `claims`), work dealt
among the processes (`leases`), stages that are kept and gone on with (`ledger`), files that are
whole or absent (`atomic`), and an exit code (`command`).
"""
