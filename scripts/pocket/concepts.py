"""What the pocket model learns: everyday names and the emoji that shows each.

Objects with a clear shape that survive 8-pixel patches; no flags, letters, clocks or skin tones.
"""

from __future__ import annotations


def _parse(table: str) -> dict[str, str]:
    pairs = (entry.split(" ") for line in table.strip().splitlines() for entry in line.split("|"))
    return {name: emoji for name, emoji in pairs}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LEARNT = """
apple 🍎|banana 🍌|strawberry 🍓|cherry 🍒|carrot 🥕|mushroom 🍄|pizza 🍕|burger 🍔|cake 🎂
cup ☕|car 🚗|bus 🚌|truck 🚚|rocket 🚀|boat ⛵|house 🏠|castle 🏰|tree 🌳|cactus 🌵|flower 🌼
tulip 🌷|cat 🐈|dog 🐕|pig 🐖|elephant 🐘|panda 🐼|penguin 🐧|duck 🦆|fish 🐟|whale 🐋|turtle 🐢
frog 🐸|butterfly 🦋|heart ❤|star ⭐|sun 🌞|moon 🌙|cloud ☁|umbrella ☂|snowman ⛄|ball ⚽
balloon 🎈|gift 🎁|bell 🔔|hat 🎩|shirt 👕|book 📕|key 🔑|ghost 👻|robot 🤖|pumpkin 🎃
"""

_OTHER = """
orange 🍊|lemon 🍋|watermelon 🍉|pineapple 🍍|pear 🍐|tomato 🍅|bread 🍞|egg 🥚|donut 🍩
cookie 🍪|train 🚂|taxi 🚕|bicycle 🚲|airplane ✈|ship 🚢|church ⛪|tent ⛺|pine 🌲|palm 🌴
rose 🌹|sunflower 🌻|horse 🐎|cow 🐄|sheep 🐑|lion 🦁|tiger 🐅|bear 🐻|rabbit 🐇|monkey 🐒
giraffe 🦒|chicken 🐔|owl 🦉|bird 🐦|snake 🐍|bee 🐝|crab 🦀|octopus 🐙|snail 🐌|fire 🔥
rainbow 🌈|crown 👑|dress 👗|shoe 👟|chair 🪑|clock ⏰|guitar 🎸|drum 🥁|camera 📷|lamp 💡
skull 💀|mountain 🏔|island 🏝|grape 🍇|melon 🍈|mango 🥭|peach 🍑|kiwi 🥝|coconut 🥥|avocado 🥑
eggplant 🍆|potato 🥔|pepper 🫑|corn 🌽|cucumber 🥒|broccoli 🥦|onion 🧅|peanut 🥜|croissant 🥐
pretzel 🥨|waffle 🧇|pancake 🥞|cheese 🧀|sandwich 🥪|taco 🌮|hotdog 🌭|fries 🍟|popcorn 🍿
sushi 🍣|pie 🥧|cupcake 🧁|candy 🍬|lollipop 🍭|icecream 🍦|chocolate 🍫|honey 🍯|teapot 🫖
bottle 🍾|milk 🥛|beer 🍺|ambulance 🚑|firetruck 🚒|tractor 🚜|scooter 🛵|motorcycle 🏍|tram 🚋
helicopter 🚁|canoe 🛶|anchor ⚓|ufo 🛸|skateboard 🛹|sled 🛷|wheel 🛞|hut 🛖|factory 🏭
hospital 🏥|school 🏫|tower 🗼|fountain ⛲|volcano 🌋|wolf 🐺|fox 🦊|unicorn 🦄|zebra 🦓|deer 🦌
goat 🐐|camel 🐪|llama 🦙|rhino 🦏|hippo 🦛|mouse 🐁|hamster 🐹|hedgehog 🦔|bat 🦇|koala 🐨
kangaroo 🦘|gorilla 🦍|leopard 🐆|raccoon 🦝|squirrel 🐿|otter 🦦|chick 🐤|rooster 🐓|turkey 🦃
eagle 🦅|swan 🦢|flamingo 🦩|parrot 🦜|peacock 🦚|crocodile 🐊|lizard 🦎|dragon 🐉|dinosaur 🦖
dolphin 🐬|shark 🦈|pufferfish 🐡|squid 🦑|shrimp 🦐|lobster 🦞|shell 🐚|jellyfish 🪼|ladybug 🐞
spider 🕷|ant 🐜|caterpillar 🐛|clover 🍀|leaf 🍁|blossom 🌸|hibiscus 🌺|planet 🪐|snowflake ❄
comet ☄|bolt ⚡|raindrop 💧|basketball 🏀|football 🏈|baseball ⚾|volleyball 🏐|racket 🏸
trophy 🏆|medal 🏅|target 🎯|kite 🪁|dice 🎲|teddy 🧸|puzzle 🧩|magnet 🧲|ring 💍|diamond 💎
glasses 👓|scarf 🧣|glove 🧤|coat 🧥|sock 🧦|boot 👢|cap 🧢|handbag 👜|backpack 🎒|lipstick 💄
trumpet 🎺|violin 🎻|piano 🎹|microphone 🎤|radio 📻|phone 📱|telephone ☎|laptop 💻
television 📺|printer 🖨|candle 🕯|lantern 🏮|newspaper 📰|scroll 📜|coin 🪙|envelope ✉|box 📦
pencil ✏|brush 🖌|scissors ✂|lock 🔒|hammer 🔨|axe 🪓|sword 🗡|shield 🛡|bow 🏹|wrench 🔧
gear ⚙|bomb 💣|ladder 🪜|telescope 🔭|microscope 🔬|door 🚪|bed 🛏|couch 🛋|toilet 🚽
bathtub 🛁|bucket 🪣|broom 🧹|basket 🧺|alien 👽|clown 🤡|smiley 🙂
"""

RECOLORED = _words("""
apple pear pepper mushroom cup car train truck boat house tent flower rose tulip cat dog horse
cow pig elephant bear giraffe penguin bird fish whale turtle frog snake butterfly crab octopus
heart star umbrella balloon gift bell hat shirt dress shoe book key chair guitar robot dragon
dinosaur dolphin scooter leaf kite teddy glove coat sock backpack candle
""")
"""Concepts that also appear in other colours than their own."""

PLURALS = {
    "cherry": "cherries", "strawberry": "strawberries", "candy": "candies", "mouse": "mice",
    "butterfly": "butterflies", "teddy": "teddies", "trophy": "trophies", "ladybug": "ladybugs",
    "peach": "peaches", "couch": "couches", "sandwich": "sandwiches", "church": "churches",
    "wrench": "wrenches", "brush": "brushes", "box": "boxes", "fox": "foxes",
    "bus": "buses", "dress": "dresses", "octopus": "octopuses", "cactus": "cacti",
    "leaf": "leaves", "wolf": "wolves", "tomato": "tomatoes", "potato": "potatoes",
    "mango": "mangoes", "volcano": "volcanoes", "factory": "factories",
}  # fmt: skip

COUNTLESS = _words("""
sun moon fire rainbow corn broccoli bread fries popcorn sushi honey milk cheese chocolate
glasses scissors dice sheep fish deer shrimp squid pufferfish jellyfish island mountain
""")
"""Names whose plural is odd, or of which a picture shows only one."""


LEARNT = tuple(_parse(_LEARNT))
"""Names that the decoder is trained on: few enough to be learnt well in minutes on a CPU."""

CONCEPTS: dict[str, str] = _parse(_LEARNT) | _parse(_OTHER)
"""Name -> emoji of everything; the tokenizer learns all of it, so its codes fit other pictures."""


def plural(name: str) -> str:
    return PLURALS.get(name, name + "s")


def article(phrase: str) -> str:
    """`phrase` with "a" or "an" in front."""
    an = phrase[0] in "aeio" or phrase.startswith("umbrella")
    return f"{'an' if an else 'a'} {phrase}"
