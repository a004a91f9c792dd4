"""Helpers of several tests: oracles that share no code with the package, small disks, studies, servers."""
