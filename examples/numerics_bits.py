"""Euler's number and a third, bit by bit, in every float format."""

import math

from fewbits.numerics import bits_of

for name, number in (("e", math.e), ("1/3", 1 / 3)):
    print(f"{name} = {number!r}")
    print(f"  {'format':14}{'sign':5}{'exponent':10}{'mantissa':25}{'value':>14}{'error':>12}")
    for r in bits_of(number):
        print(f"  {r.qtype:14}{r.sign:5}{r.exponent:10}{r.mantissa:25}{r.value:14.8g}{r.error:12.2e}")
