"""Memory of one rank: the allocator replay and what no dispatch trace sees."""
