"""The driver: what may be sent (`target`), the link's states (`link_state`), the thread that owns the port (`link`)."""
