"""The parts of ``launch_server.py`` and ``engine.py``."""
