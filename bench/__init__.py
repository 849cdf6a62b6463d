"""What we measure, and against what: ``make bench``, or ``python -m bench [ROW…] [--quick]``.

How to read the table. Each line is one figure of ours and, where there is something real that can be held against it,
the same figure of that, taken in turns with ours in the same run, or at the same time where both are idle. These are:

- nginx: ``serve`` (one client, a range and TLS 15 rounds, eight clients 5) and ``relay`` (15);
- docker-registry: ``requests`` from the store (5), its pull-through cache for those through a second host (3, each with
  both started anew), its own 404 for ``misses`` (5), containerd straight from it for ``pull`` (5), and idle ``memory``
  (3, each with both started anew; the CPU of a minute 1);
- ours with the fewest peers or blobs: ``growth`` (3);
- ours without a flood at the peer door: ``flood`` (5);
- nothing: the first miss (1), and of ``memory`` the start (5) and 32 transfers (2, each with both hosts started anew).

`ours` and `reference` are medians over the rounds. `ratio` is the one divided by the other, so that it says how many
times as good ours is: above 1 ours is faster, or needs less, whatever the unit. `middle half` is from where to where
half of the rounds lie, the quartiles: of the ratios round by round, or of our figures where there is no reference.
Where it is wide, the machine was busy with something else, or one side is now fast and now slow; the ratio of the
medians may then even lie outside. `budget` is what DESIGN.md asks for; it is held against the ratio, or against our
median.

A line under the table names the figures during which the client was computing for more than 0.9 of the time (with many
clients, the busiest of them): there the client may be what was measured, and the server could do more.

The JSON document beside it has every single sample, how busy the client was, the machine, and the versions of all that
took part. ``--show FILE`` prints the table of such a document, as README has it.

Rows are chosen by name (``--help`` lists them); each is a module in bench/rows. CPU seconds are those of the server's
processes, not of the client's. The client is a process of its own that lets the kernel throw bodies away
(bench/load.py); before a large transfer counts, its digest is checked.

``python -m bench fuzz [--seconds N] [--seed N]`` measures nothing: it gives random files to the editors of hosts.toml,
registries.yaml and Talos's documents (bench/fuzz.py), and fails where something does not hold.
"""
