"""The shadow service: strips mirrored requests of what is personal, asks both arms, compares."""
