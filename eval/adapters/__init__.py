"""Our models in the community's harnesses; each module needs the package that it is named after."""
