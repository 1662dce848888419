"""The operators: public function, fake kernel and autograd of each in a file of its name."""

from atlas_ext._load import load

load()
