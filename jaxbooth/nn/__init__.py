"""The models, module for module under the names that PyTorch has for them."""
