"""What we measure, and against what: ``make bench``, or ``python -m bench [ROW…] [--quick]``;
``--show FILE`` prints the table of a run that was kept.

How to read the table. Each line is one figure of ours and, taken in the same run in turns with it, the same figure of
something real: nginx, or Debian's docker-registry. `ours` and `reference` are medians over the rounds. `ratio` is
that of the two and says how many times as good ours is: above 1 ours is faster, or needs less, whatever the unit.
`spread` is the middle half of the single rounds' ratios, or the least and the most of our figures where there is no
reference: where it is wide, chance had a part. `budget` is what DESIGN.md asks for.

The JSON document beside it has every single sample, the machine, and the versions of all that took part.

Rows are chosen by name: ``serve``, ``relay``, ``requests``, ``misses``, ``pull``, ``memory``, ``growth``; each is a
module in bench/rows. CPU seconds are those of the server's processes, not of the client's. The client is a process of
its own that lets the kernel throw bodies away (bench/load.py); before a large transfer counts, its digest is checked.
"""
