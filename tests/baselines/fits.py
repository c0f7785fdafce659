"""Settings with which each method learns on the demo base (d = 96); the defaults are for billions of parameters."""

FITS = {
    "scen": {},
    "comeba-hk": {"batch": 4, "at": "last", "contexts": 1, "known": 15, "decay": 0.1, "clamp": 2.0},
    "melo": {"lr": 1e-2},
    "grace": {"steps": 30},
    "ft": {"lr": 1e-3},
    "ft-kl": {"lr": 1e-3},
    "ft-tuned": {"lr": 1e-3},
    "memit": {"at": "last", "contexts": 1, "known": 15, "decay": 0.1, "clamp": 2.0},
    "in-context": {},
    "ultra-edit": {"eta": 1e-2},
    "t-patcher": {"per": "token", "lr": 0.05, "steps": 40, "memory": 1.0},
    "serac": {
        "lr": 1e-3,
        "steps": 20,
        "mini_batch": 4,
        "classifier_steps": 60,
    },  # enough for tests; it needs 900 steps of 16 to learn to read an edit
    "mend": {"rank": 64, "scale": 1e-3, "lr": 1e-3, "lr_scale": 1e-3, "steps": 100, "mini_batch": 8},
}
