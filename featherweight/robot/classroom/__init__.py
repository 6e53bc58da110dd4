"""A classroom: one server for pages, robots and simulators of a class; queue, stop for all, leader board, export."""
