"""The kit: what a person with real weights runs once, so that measured values replace guesses.

`material.py` makes an index of some of their pictures, `checks.py` looks at the checkpoint,
`pace.py` measures speed and memory, `settings.py` bits and copying by λ, τ, K and keys,
`recommend.py` what follows from them, `page.py` shows all of it. Every measurement is kept in the
journal of the run as soon as it is made.
"""
