"""Where weights live: fixed pages under address ranges that never change."""
