"""Settings with which each method learns something on the demo base (d = 96), where its paper's are for billions."""

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
    "serac": {"lr": 1e-3, "steps": 20, "mini_batch": 4, "classifier_steps": 60},  # learns to read an edit in 900 of 16
    "mend": {"rank": 64, "scale": 1e-3, "lr": 1e-3, "lr_scale": 1e-3, "steps": 100, "mini_batch": 8},
}
