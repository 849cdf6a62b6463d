"""What we measure, and against what: ``make bench``, or ``python -m bench [ROW…] [--quick]``.

How to read the table: each line has one figure of peili. If there is a reference, it has the same figure of the
reference. Both are measured in turns in the same run, or at the same time if both are idle. The references, with the
number of rounds, are:

- nginx: ``serve`` (one client, a range and TLS 15 rounds, eight clients 5) and ``relay`` (15);
- docker-registry: ``requests`` from the store (5), its pull-through cache for the requests through a second host (3,
  both sides restarted for each), its own 404 for ``misses`` (5), pulls by containerd directly from it for ``pull`` (5)
  and ``parallel`` (3), and idle ``memory`` (3, both sides restarted for each; the CPU of a minute 1);
- peili with the fewest peers or blobs: ``growth`` (3);
- peili without a flood at the peer door: ``flood`` (5);
- peili with an image that everybody may pull, for one that only some may pull: ``pull`` (5);
- peili with the honest holder only: ``health`` (3);
- the number of tests that ran: ``containerd`` (1);
- none: the first miss (1), and in ``memory`` the start (5) and 32 transfers (2, both hosts restarted for each).

`ours` and `reference` are medians over the rounds. `ratio` says how many times as good as the reference peili is: above
1, peili is faster or needs less, whatever the unit. `middle half` has the quartiles, between which half of the rounds
lie: of the ratios of each round, or of our figures if there is no reference. It is wide if the machine was busy with
something else, or if one side varies. The ratio of the medians can then lie outside of it. `budget` is the goal that
the project sets for the ratio or for our median.

A line under the table names the figures for which the client computed for more than 0.9 of the time (of several
clients, the busiest one). For these, the client may be the limit, and the server could do more.

The JSON document has every sample, how busy the client was, the machine, and the versions of all programs. ``--show
FILE`` prints the table of such a document.

Rows are selected by name (``--help`` lists the names). Each name is a module in bench/rows. CPU seconds are those of
the server's processes. The client is a separate process that lets the kernel discard the bodies (bench/load.py). Before
a large transfer is measured, its digest is checked once.

``python -m bench fuzz [--seconds N] [--seed N]`` measures nothing. It passes random files to the editors of hosts.toml,
registries.yaml and Talos's documents (bench/fuzz.py), and fails if an editor breaks one of its rules. Then atheris
sends inputs to both doors, and to the peer door also inside mutual TLS and as wrong records of TLS
(bench/door_fuzzer.py). ``make bench`` does this after a full run, for 30 seconds each.
"""
