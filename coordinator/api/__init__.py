"""The resources as pydantic models, and the CustomResourceDefinitions that are made from them."""
