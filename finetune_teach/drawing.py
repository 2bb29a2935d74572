# TEMPORARY: until all import from engine.drawing
from .engine.drawing import *
