"""Show-o: it fills a masked grid of picture tokens in any order."""
