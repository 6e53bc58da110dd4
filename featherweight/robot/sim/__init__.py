"""The arm in MuJoCo: models in Python, a simulated kit behind the real driver, cameras, Gymnasium environments."""
