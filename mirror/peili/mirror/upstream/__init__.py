"""Small questions to registries: may this be read, and what does a tag mean there? Content never goes this way."""
