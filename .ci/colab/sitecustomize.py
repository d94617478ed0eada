"""Makes an interpreter look like Colab's: ``google.colab`` is imported before any cell runs, and a drive can be had."""

import os
import sys
import types

drive = types.ModuleType("google.colab.drive")
drive.mount = lambda folder: os.makedirs(f"{folder}/MyDrive", exist_ok=True)
colab = types.ModuleType("google.colab")
colab.drive = drive
sys.modules |= {"google.colab": colab, "google.colab.drive": drive}
