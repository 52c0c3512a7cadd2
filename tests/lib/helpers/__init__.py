"""What tests, golden results and benchmarks share: oracles, small files, simulated devices.

Imported as `helpers`; setup.cfg puts `tests/lib` on the path.
"""
