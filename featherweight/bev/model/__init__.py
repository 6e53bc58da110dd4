"""The network: backbone, view transform by columns, cycle, memory, decoder."""
