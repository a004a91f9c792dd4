"""What several tests share: oracles that share no code with the package, small disks, studies, servers."""
