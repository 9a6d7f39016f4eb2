"""The conformance suite: holds any installed BitTensor backend against docs/numerics.md, by name.

Run ``python -m bittensor_conformance NAME``, or ``BITTENSOR_BACKEND=NAME pytest --pyargs bittensor_conformance``, from
any directory. What a backend declares in its capabilities is tested, bit for bit, against an oracle of the suite's own;
what it does not declare must be refused. Nothing here imports a backend.
"""
