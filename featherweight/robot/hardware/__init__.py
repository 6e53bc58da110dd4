"""The kit as things: printed parts, servos, plates, masses, wiring, bill of materials, guide, firmware file.

Lengths inside this room are millimetres, as on drawings and printers; names that leave it carry their unit.
"""
