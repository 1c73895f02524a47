"""How near the service is to its limit, and what it costs: `make bench`.

`work` is what runs in processes of their own; `ratios` holds it against a bare loop and against the
goals, `curves` and `costs` say how it grows and what it takes, `drawing` draws.
"""
